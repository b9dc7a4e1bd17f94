"""The files of a release as its report lists them: listed at the end of a run, compared by `moe4 verify`.

The list covers every file but the report itself. Not covered is what comes after: the model card, which is
meant to be edited, and the measured results in `proof/`. Hidden files are no part of a release.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moe4.checkpoint.durable import file_sha256
from moe4.checkpoint.release import REPORT_NAME
from moe4.checkpoint.side_files import CARD_NAME, require_inside
from moe4.errors import UnsafePathError

PROOF_FOLDER = "proof"
NOT_COVERED = (REPORT_NAME, CARD_NAME, f"{PROOF_FOLDER}/")

Listing = dict[str, dict[str, Any]]
"""By file name: `num_bytes` and `sha256`."""


def list_file(path: Path) -> dict[str, Any]:
    """Return what a list says of a file."""
    return {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def list_files(folder: Path, names: Iterable[str], coming: Mapping[str, bytes]) -> Listing:
    """Return the list of some files in a folder, and of some that will be written with these contents."""
    listing = {name: list_file(folder / name) for name in names}
    for name, data in coming.items():
        listing[name] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return dict(sorted(listing.items()))


def compare_files(folder: Path, listing: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, what is wrong with it): removed, changed, or added and not listed."""
    for name, entry in listing.items():
        problem = _compare_file(folder / name, entry) if Path(name).name == name else "is no file name"
        if problem is not None:
            yield name, problem
    for path in sorted(folder.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if path.name.startswith(".") or name in listing:
            continue
        if name not in NOT_COVERED:
            yield name, f"was added: {REPORT_NAME} does not list it"
        for part in [path, *(sorted(path.rglob("*")) if name == f"{PROOF_FOLDER}/" else ())]:
            problem = _leads_out(part, folder)
            if problem is not None:
                yield str(part.relative_to(folder)), problem


def _compare_file(path: Path, entry: Any) -> str | None:
    problem = _leads_out(path, path.parent)
    if problem is not None:
        return problem
    if not path.is_file():
        return "is no file" if path.exists() else "is missing"
    size, sha256 = (entry.get("num_bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if path.stat().st_size == size and file_sha256(path) == sha256:
        return None
    return f"is not the file {REPORT_NAME} describes: its SHA-256 differs"


def _leads_out(path: Path, folder: Path) -> str | None:
    try:
        require_inside(path, folder)
    except UnsafePathError as error:
        return str(error).removeprefix(f"{path} ")
    return None
