"""A repository on the hub at one commit: which files it has, and which of them make a checkpoint."""

import logging
import random
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME, SHARD_SUFFIX, own_shards
from moe4.checkpoint.side_files import WEIGHT_SUFFIXES
from moe4.errors import HubError
from moe4.files.regular import has_control_characters, read_json_object
from moe4.fingerprint import Pin
from moe4.hub.faults import explain, is_of_session, may_pass
from moe4.strict_json import is_encodable

NUM_TRIES = 6
NUM_TRIES_TO_LIST = NUM_TRIES_TO_DOWNLOAD = 3  # the library tries again itself
NUM_SESSIONS = 20  # closed by other threads, before one request gives up
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
ANSWER_SECONDS = 30.0
MAX_FILES = 100_000
_COMMIT = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A commit's files: path to size, None where the hub does not tell."""

    pin: Pin
    sizes: dict[str, int | None]

    def top_names(self) -> set[str]:
        """Return the names at the top; a folder's ends in a slash."""
        found = set()
        for name in self.sizes:
            top, slash, _ = name.partition("/")
            found.add(top + slash)
        return found

    def without_weights(self) -> list[str]:
        """Return the files that are no weights: config, index, tokenizer, templates, code, licence."""
        return sorted(
            name for name in self.sizes if PurePosixPath(name).suffix.lower() not in WEIGHT_SUFFIXES
        )

    def shards(self, folder: Path) -> list[str]:
        """Return the shards that the index in `folder` names, or else those that need none."""
        top = [name for name in self.sizes if "/" not in name]
        if INDEX_NAME in self.sizes:
            weight_map = read_json_object(folder / INDEX_NAME).get("weight_map")
            named = set(weight_map.values()) if isinstance(weight_map, dict) else set()
            return sorted(name for name in self.sizes if name in named)
        return own_shards(top)

    def require_checkpoint(self) -> None:
        """Raise HubError unless there is a config and at least one safetensors file."""
        if CONFIG_NAME not in self.sizes:
            raise HubError(f"{self.pin} is not a checkpoint: it has no {CONFIG_NAME}")
        if not any(name.endswith(SHARD_SUFFIX) for name in self.sizes):
            raise HubError(f"{self.pin} has no safetensors files, and moe4 reads no others")


def list_files(repository: str, revision: str, commit: str | None = None) -> Listing:
    """Ask the hub for a revision's commit, or for a commit that is known, and its files. Raises HubError."""
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().model_info(
            repository, revision=commit or revision, files_metadata=True, timeout=ANSWER_SECONDS
        )

    info = patiently(ask, repository, revision, num_tries=NUM_TRIES_TO_LIST)
    found = str(info.sha)
    if _COMMIT.fullmatch(found) is None:
        raise HubError(f"{repository}: the hub gives {found!r:.60} for the commit of {revision}")
    siblings = list(info.siblings or [])
    if len(siblings) > MAX_FILES:
        raise HubError(f"{repository} has {len(siblings)} files; at most {MAX_FILES} are looked at")
    sizes = {_checked(repository, file.rfilename): file.size for file in siblings}
    return Listing(pin=Pin(repository=repository, revision=revision, commit=found), sizes=sizes)


def patiently(
    ask: Callable[[], Result], repository: str, revision: str, what: str = "", num_tries: int = NUM_TRIES
) -> Result:
    """Return what `ask` does, tried again a few times where that may help. Raises HubError.

    The library's own warnings, which show signed URLs, are not printed: what came of it is said once.
    """
    for name in ("file_download", "utils._http"):
        logging.getLogger(f"huggingface_hub.{name}").setLevel(logging.ERROR)
    attempt, sessions = 0, 0
    while True:
        try:
            return ask()
        except Exception as error:  # libraries below the hub's raise their own kinds
            known = explain_or_none(error, repository, revision, what)
            if known is None:
                raise
            if is_of_session(error) and sessions < NUM_SESSIONS:
                sessions += 1
                time.sleep(random.uniform(0.0, FIRST_WAIT_SECONDS))
                continue
            attempt += 1
            if attempt == num_tries or not may_pass(error):
                raise known from error
            time.sleep(wait_seconds(attempt - 1))


def explain_or_none(error: Exception, repository: str, revision: str, what: str) -> HubError | None:
    """Return the line for an error of a request; None for one of ours, or of the disk."""
    from huggingface_hub.errors import HTTPError

    if is_of_session(error):
        return explain(error, repository, revision, what)
    is_of_disk = isinstance(error, OSError) and error.errno is not None and not hasattr(error, "response")
    if is_of_disk and not isinstance(error, ConnectionError | TimeoutError):
        return None
    if isinstance(error, HTTPError | OSError | ValueError):
        return explain(error, repository, revision, what)
    return None


def wait_seconds(attempt: int) -> float:
    """Return how long to wait after the n-th attempt, from 0, so that threads do not meet again."""
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0**attempt) * random.uniform(0.5, 1.0)


def _checked(repository: str, name: Any) -> str:
    """Return a file's name in a repository if it stays inside a folder. Raises HubError."""
    path = PurePosixPath(str(name))
    is_text = isinstance(name, str) and is_encodable(name) and not has_control_characters(name)
    if not is_text or path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name:
        raise HubError(f"{repository} lists {name!r:.80}, which is not a file inside a repository")
    return str(name)


def missing_shards(folder: Path, names: Collection[str]) -> list[str]:
    """Return the shards that are not in a folder."""
    return sorted(name for name in names if not (folder / name).exists())
