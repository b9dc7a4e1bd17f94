"""The files beside a checkpoint's weights: which go into a release, which stay behind, which are refused.

A link is followed only inside the checkpoint, or, in the hub's cache, from a snapshot to its own repository's
blobs: whatever goes into a release may be published with it.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from moe4.checkpoint.index import CONFIG_NAME, PROBE_NAME
from moe4.checkpoint.release_folder import REPORT_NAME
from moe4.errors import CheckpointError
from moe4.files.durable import file_sha256
from moe4.files.regular import check_file_name, require_inside

CARD_NAME = "README.md"
# In lower case. A release has its own of these; the source's card describes another model.
OWN_NAMES = frozenset((CONFIG_NAME, PROBE_NAME, REPORT_NAME, CARD_NAME.lower()))
WEIGHT_SUFFIXES = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl", ".npz")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SideFiles:
    """What lies beside a checkpoint's shards, sorted by name."""

    files: tuple[Path, ...]
    """Tokenizer, template, licence and the like: they go into a release byte for byte."""
    left_out: tuple[str, ...]
    """Names of what does not: folders, which end in a slash, and weights that the index does not name."""

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by name."""
        return {path.name: file_sha256(path) for path in self.files}


def find_side_files(folder: Path, shards: Collection[str], elsewhere: Collection[str] = ()) -> SideFiles:
    """Look at everything in a checkpoint's folder but its shards; hidden files are passed over.

    elsewhere: names at the top of a checkpoint of which the folder has only some; a folder's ends in a slash.
    Raises UnsafePathError for a link that leads out of the checkpoint, CheckpointError for a file that cannot
    be read, or whose name a report could not hold.
    """
    require_inside(folder / CONFIG_NAME, folder)
    files, left_out = [], []
    for path in sorted(folder.iterdir()):
        name = path.name
        if name.startswith(".") or name in shards or _is_own(name.lower()):
            continue
        check_file_name(path)
        if path.is_dir():
            if not any(shard.startswith(f"{name}/") for shard in shards):
                left_out.append(f"{name}/")
        elif path.suffix.lower() in WEIGHT_SUFFIXES:
            left_out.append(name)
        else:
            require_inside(path, folder)
            if not path.is_file():
                left_out.append(name)
            elif os.access(path, os.R_OK):
                files.append(path)
            else:
                raise CheckpointError(f"{path} cannot be read: permission denied")
    there = {path.name for path in folder.iterdir()}
    for name in elsewhere:
        is_passed_over = name.startswith(".") or name in shards or _is_own(name.lower())
        in_use = name.endswith("/") and any(shard.startswith(name) for shard in shards)
        if name.rstrip("/") not in there and not is_passed_over and not in_use:
            left_out.append(name)
    return SideFiles(files=tuple(files), left_out=tuple(sorted(left_out, key=lambda name: name.rstrip("/"))))


def shown(name: str) -> str:
    """Return a file's name as it can be printed, whatever its bytes."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _is_own(name: str) -> bool:
    return name in OWN_NAMES or name.endswith(".index.json")
