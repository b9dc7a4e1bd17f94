"""Upload a release and its card to the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path

from moe4.checkpoint.release_folder import WORK_NAME
from moe4.deploy.manifests.grammar import is_repository
from moe4.errors import CheckpointError, OutputError
from moe4.files.regular import require_inside


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One file that goes up: its place in the repository and its size."""

    name: str
    num_bytes: int


def check_repo(repo: str, shown: str) -> str:
    """Return the name of a repository, which messages call `shown`.

    Raises OutputError where the hub would not take it for `owner/name`.
    """
    if not is_repository(repo):
        raise OutputError(f"{shown}: expected OWNER/NAME of letters, digits and single '-', '_' or '.'")
    return repo


def list_uploads(out: Path) -> list[Upload]:
    """Return every file of the release, sorted; hidden files stay here.

    Raises CheckpointError for a release that is not finished, UnsafePathError for a link out of it.
    """
    if (out / WORK_NAME).exists():
        raise CheckpointError(f"{out} holds an unfinished release: finish it before it is published")
    found = []
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        if any(part.startswith(".") for part in parts):
            continue
        require_inside(path, out)
        if path.is_file() and path.suffix != ".partial":
            found.append(Upload(name="/".join(parts), num_bytes=path.stat().st_size))
    return found


def push(out: Path, repo: str, uploads: list[Upload], *, private: bool) -> str:
    """Upload; return the repository's address. The token is huggingface_hub's own. Raises OutputError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=out,
            allow_patterns=[upload.name for upload in uploads],
            commit_message="Upload the W4A16 release and its card",
        )
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OutputError(f"{repo} cannot be uploaded: {reason}; log in with `hf auth login`") from error
    return str(url)
