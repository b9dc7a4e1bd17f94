"""What a checkpoint's JSON files and safetensors headers tell, read without torch in no time.

A safetensors file: eight bytes, little endian, the header's length; a JSON header that may end in spaces;
then the tensors' bytes, without holes.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moe4.errors import CheckpointError, MissingFileError, TruncatedShardError, UnsafePathError

INDEX_NAME = "model.safetensors.index.json"
PROBE_NAME = "moe4-probe.json"
CONFIG_NAME = "config.json"
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
ITEM_BYTES = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A tensor's name, dtype as safetensors names it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of its data in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a shard; `offset` counts bytes from the start of the file."""

    spec: TensorSpec
    path: Path
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard's header: its tensors, in file order, and what identifies it without reading its data."""

    path: Path
    num_bytes: int
    header_sha256: str
    tensors: dict[str, StoredTensor]


def read_shard(path: Path) -> Shard:
    """Read and check a shard's header. Raises MissingFileError or TruncatedShardError."""
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise TruncatedShardError(
                    f"{path} is not a whole safetensors file: {file_bytes} bytes cannot hold its header; "
                    "download it again"
                )
            header = file.read(header_bytes)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {
            stored.spec.name: stored
            for stored in sorted(
                (_parse_entry(path, name, entry, 8 + header_bytes) for name, entry in entries.items()),
                key=lambda stored: (stored.offset, stored.spec.num_bytes),
            )
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TruncatedShardError(f"{path} has no valid safetensors header: {error}") from None
    position = 8 + header_bytes
    for stored in tensors.values():
        if stored.offset != position:
            raise TruncatedShardError(f"{path}: tensor {stored.spec.name} overlaps another or leaves a hole")
        position += stored.spec.num_bytes
    if position != file_bytes:
        raise TruncatedShardError(
            f"{path} is truncated or damaged: its header describes {position} bytes, "
            f"the file has {file_bytes}; download it again"
        )
    digest = hashlib.sha256(prefix + header).hexdigest()
    return Shard(path=path, num_bytes=file_bytes, header_sha256=digest, tensors=tensors)


def _parse_entry(path: Path, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
    """Check one header entry; ValueError, TypeError or KeyError say what is wrong with it."""
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name} has the dtype {dtype}, which moe4 does not read")
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, start, end)):
        raise ValueError(f"tensor {name} has a negative size or offset")
    spec = TensorSpec(name=name, dtype=dtype, shape=tuple(shape))
    if end - start != spec.num_bytes:
        raise ValueError(f"tensor {name} needs {spec.num_bytes} bytes, its offsets span {end - start}")
    return StoredTensor(spec=spec, path=path, offset=data_start + start)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises CheckpointError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return data


def read_weight_map(folder: Path) -> dict[str, str]:
    """Return which shard holds each tensor, with every path checked to stay in the folder."""
    index = folder / INDEX_NAME
    if not index.is_file():
        shards = sorted(folder.glob("*.safetensors"))
        if len(shards) == 1:
            return dict.fromkeys(read_shard(shards[0]).tensors, shards[0].name)
        raise MissingFileError(
            f"{folder} is no checkpoint: it has no {INDEX_NAME}, and {len(shards)} safetensors files "
            "where one could stand without it"
        )
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for shard_name in set(map(str, weight_map.values())):
        path = PurePosixPath(shard_name)
        if path.is_absolute() or ".." in path.parts or "\\" in shard_name or path.suffix != ".safetensors":
            raise UnsafePathError(
                f"{index} names {shard_name!r}, which is not a safetensors file inside the folder"
            )
        if not (folder / shard_name).is_file():
            raise MissingFileError(f"{index} names the shard {shard_name}, which is not in {folder}")
    return {str(name): str(shard_name) for name, shard_name in weight_map.items()}
