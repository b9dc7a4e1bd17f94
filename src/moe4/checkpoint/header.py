"""What a safetensors file's header tells, read without torch in no time.

A safetensors file: eight bytes, little endian, the header's length; a JSON header that may end in spaces;
then the tensors' bytes, without holes.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe4.errors import TensorError, TruncatedShardError
from moe4.files.regular import has_control_characters, open_regular, read_exactly
from moe4.strict_json import is_encodable, parse_json

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
MAX_TENSORS = 1 << 20  # Kimi-K2's release has 208,000
MAX_DIMENSIONS = 16
MAX_NAME_LENGTH = 1024
COPY_BYTES = 16 << 20
FLOAT_DTYPES = ("BF16", "F16", "F32")
# Every dtype that safetensors 0.8 knows, also those that moe4 has no use for: a file that holds one is whole.
ITEM_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
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
        return -(-math.prod(self.shape) * ITEM_BITS[self.dtype] // 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Which part of a slab in the file a tensor is: a range of places along one axis of the slab.

    slab: its shape. is_turned: the slab is a matrix of which the tensor is the transpose.
    """

    slab: tuple[int, ...]
    axis: int
    places: range
    is_turned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a shard; `offset` counts bytes from the start of the file.

    cut: of what lies there, the part that is the tensor; None where all of it is.
    """

    spec: TensorSpec
    path: Path
    offset: int
    cut: Cut | None = None

    @property
    def read_bytes(self) -> int:
        """How much of the file is read for it."""
        slab = self.spec if self.cut is None else replace(self.spec, shape=self.cut.slab)
        return slab.num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard's header: its tensors, in file order, and what identifies it without reading its data."""

    path: Path
    num_bytes: int
    header_sha256: str
    tensors: dict[str, StoredTensor]


def read_shard(path: Path) -> Shard:
    """Read and check a shard's header. Raises MissingFileError, TruncatedShardError, TensorError."""
    with open_regular(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        prefix = read_exactly(file, 8)
        header = read_exactly(file, header_length(path, prefix, file_bytes))
    return parse_shard(path, prefix + header, file_bytes)


def header_length(where: Path, prefix: bytes, file_bytes: int) -> int:
    """Return the length of a header from a file's first eight bytes. Raises TruncatedShardError."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise TruncatedShardError(
            f"{where} is not a whole safetensors file: {file_bytes} bytes cannot hold its header; "
            "download it again"
        )
    return length


def parse_shard(path: Path, head: bytes, file_bytes: int) -> Shard:
    """Return what a shard's first bytes tell: its length prefix and its header, and nothing after them.

    path: where the shard lies, or will lie. Raises TruncatedShardError, TensorError.
    """
    tensors = _parse_header(path, head[8:], len(head))
    position = len(head)
    for stored in tensors.values():
        if stored.offset != position:
            raise TruncatedShardError(f"{path}: tensor {stored.spec.name} overlaps another or leaves a hole")
        position += stored.spec.num_bytes
    if position != file_bytes:
        raise TruncatedShardError(
            f"{path} is truncated or damaged: its header describes {position} bytes, "
            f"the file has {file_bytes}; download it again"
        )
    digest = hashlib.sha256(head).hexdigest()
    return Shard(path=path, num_bytes=file_bytes, header_sha256=digest, tensors=tensors)


def _parse_header(path: Path, header: bytes, data_start: int) -> dict[str, StoredTensor]:
    """Return a header's tensors in file order."""
    try:
        entries = parse_json(header)
        if not isinstance(entries, dict):
            raise ValueError(f"expected an object, found {type(entries).__name__}")
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("__metadata__ must map names to text")
        if len(entries) > MAX_TENSORS:
            raise ValueError(f"{len(entries)} tensors; at most {MAX_TENSORS} are read")
        found = [_parse_entry(path, name, entry, data_start) for name, entry in entries.items()]
    except ValueError as error:
        raise TruncatedShardError(f"{path} has no valid safetensors header: {error}") from None
    found.sort(key=lambda stored: (stored.offset, stored.spec.num_bytes))
    return {stored.spec.name: stored for stored in found}


def _parse_entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    """Check one header entry; ValueError says what is wrong with it. Raises TensorError for its dtype."""
    check_tensor_name(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} must have a dtype, a shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise TensorError(f"{path}: tensor {name} has the dtype {dtype!r:.60}, which moe4 does not read")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name} has no shape of at most {MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"tensor {name} has no pair of data_offsets")
    if any(type(size) is not int or size < 0 for size in shape + offsets):
        raise ValueError(f"tensor {name} has a negative size or offset, or one that is not a whole number")
    spec = TensorSpec(name=name, dtype=dtype, shape=tuple(shape))
    start, end = offsets
    if math.prod(shape) * ITEM_BITS[dtype] % 8 or end - start != spec.num_bytes:
        raise ValueError(f"tensor {name} needs {spec.num_bytes} bytes, its offsets span {end - start}")
    return StoredTensor(spec=spec, path=path, offset=data_start + start)


def check_tensor_name(name: str) -> None:
    """Raise ValueError for a name that no model uses and that could not be printed in a line or written."""
    if not 0 < len(name) <= MAX_NAME_LENGTH or has_control_characters(name) or not is_encodable(name):
        raise ValueError(f"{name!r:.80} cannot be the name of a tensor")


def iterate_bytes(stored: StoredTensor) -> Iterator[bytes]:
    """Yield a tensor's bytes in pieces of at most 16 MiB."""
    remaining = stored.spec.num_bytes
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        while remaining:
            piece = file.read(min(COPY_BYTES, remaining))
            if not piece:
                raise TruncatedShardError(f"{stored.path} ended inside tensor {stored.spec.name}")
            remaining -= len(piece)
            yield piece
