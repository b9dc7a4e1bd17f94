"""One safetensors file: read its tensors, write it with a chosen layout.

`header.py` describes the format and reads headers. We read and write it ourselves because a release places
its tensors (`ShardWriter`), and because unquantized tensors are copied as bytes.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.header import COPY_BYTES, Shard, StoredTensor, TensorSpec, iterate_bytes, read_shard
from moe4.errors import TensorError, TruncatedShardError
from moe4.files.durable import create_file
from moe4.machine.at_once import BEHIND_BYTES
from moe4.strict_json import JsonObject

__all__ = [
    "Shard",
    "ShardWriter",
    "StoredTensor",
    "TensorSpec",
    "iterate_bytes",
    "iterate_rows",
    "read_shard",
    "read_tensor",
    "tensor_bytes",
]

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PAGE_BYTES = 4096
HASH_BYTES = 1 << 20  # read back at a time: little enough to stay in a processor's cache until it is hashed
SYNC_BYTES = 1 << 30  # written before the disk is asked to catch up, so that little is left at the end


Slabs = dict[tuple[Path, int], Tensor]
"""What lies whole at a place of a file, for the tensors that are cut out of it."""


def read_tensor(stored: StoredTensor, *, pinned: bool = False, slabs: Slabs | None = None) -> Tensor:
    """Read one tensor into fresh memory, in its stored dtype and shape.

    `pinned` memory is what a GPU copies from at full speed; it needs CUDA. slabs: what was read for tensors
    before, to which what this one is cut out of is added.
    Raises TensorError for a dtype that torch does not have.
    """
    if stored.spec.dtype not in DTYPES:
        raise TensorError(
            f"{stored.spec.name} in {stored.path} has the dtype {stored.spec.dtype}, which moe4 does not read"
        )
    cut, dtype = stored.cut, DTYPES[stored.spec.dtype]
    shape = stored.spec.shape if cut is None else cut.slab
    before = None if slabs is None or cut is None else slabs.get((stored.path, stored.offset))
    if before is None:
        tensor = torch.empty(shape, dtype=dtype, pin_memory=pinned and cut is None)
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.offset)
            _fill(tensor, file, stored)
    else:
        tensor = before
    if cut is None:
        return tensor
    if slabs is not None:
        slabs[stored.path, stored.offset] = tensor
    places = slice(cut.places.start, cut.places.stop, cut.places.step)
    part = tensor[(slice(None),) * cut.axis + (places,)]
    whole = torch.empty(stored.spec.shape, dtype=dtype, pin_memory=pinned)
    return whole.copy_(part.T if cut.is_turned else part)


def iterate_rows(stored: StoredTensor) -> Iterator[Tensor]:
    """Yield a tensor [rows, ...], some whole rows of at most 16 MiB at a time, or one; a cut one at once."""
    if stored.cut is not None:
        yield read_tensor(stored)
        return
    num_rows, *rest = stored.spec.shape
    step = max(1, COPY_BYTES * num_rows // max(1, stored.spec.num_bytes))
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for start in range(0, num_rows, step):
            rows = torch.empty(min(step, num_rows - start), *rest, dtype=DTYPES[stored.spec.dtype])
            _fill(rows, file, stored)
            yield rows


def _fill(tensor: Tensor, file: RawIOBase, stored: StoredTensor) -> None:
    """Read a tensor's bytes from where the file stands."""
    view, filled = tensor_bytes(tensor), 0
    while filled < len(view):
        count = file.readinto(view[filled:])
        if not count:
            raise TruncatedShardError(f"{stored.path} ended inside tensor {stored.spec.name}")
        filled += count


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a contiguous CPU tensor's bytes without a copy."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    data: Any = flat.view(torch.uint8).numpy()
    return memoryview(data)


class ShardWriter:
    """Write one shard: the layout first, then its tensors in any order, each once.

    The data begins on a 4096-byte boundary (the header is padded with spaces) and the tensors lie as `specs`
    orders them. What comes in the file's order is hashed as it is written; `finish` reads back and hashes the
    rest, checks that nothing is missing and syncs the file to disk. Memory: one tensor at a time.

    With `behind`, `write` hands a tensor to a thread that writes it, and returns; what it hands over must not
    change. At most BEHIND_BYTES wait. A second thread reads back and hashes what is written, as far as it has
    no holes. It may fall behind by the whole file, since one thread hashes more slowly than disks write; the
    caller need not wait for it before `finish`. An error of theirs is raised by a later call.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec], *, behind: bool = False) -> None:
        self.path = path
        self._behind = _Behind() if behind else None
        self._specs: dict[str, TensorSpec] = {}
        self._offsets: dict[str, int] = {}
        header: JsonObject = {"__metadata__": {"format": "pt"}}
        position = 0
        for spec in specs:
            assert spec.name not in self._specs, f"{spec.name} is laid out twice"
            self._specs[spec.name], self._offsets[spec.name] = spec, position
            end = position + spec.num_bytes
            header[spec.name] = {
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "data_offsets": [position, end],
            }
            position = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-(8 + len(encoded)) % PAGE_BYTES)
        self._data_start = 8 + len(encoded)
        self.num_bytes = self._data_start + position
        self._missing = set(self._specs)
        self._digest, self._hashed = hashlib.sha256(), 0
        self._whole_until, self._beyond_hole = (
            0,
            dict[int, int](),
        )  # what is written: until here, and start: end
        self.bytes_read_back = self._unsynced_bytes = 0
        self._file = os.fdopen(create_file(path), "wb", buffering=0)
        self._reserve()
        self._write_at(0, len(encoded).to_bytes(8, "little") + encoded)

    def _reserve(self) -> None:
        """Take the file's room on the disk, so that a full one is known before anything is computed.

        Some file systems fill the room with zeros, which takes seconds: with `behind` it is the first task of
        the writer's thread.
        """

        def reserve() -> None:
            os.posix_fallocate(self._file.fileno(), 0, self.num_bytes)

        if self._behind is not None:
            self._behind.write(reserve, 0)
        else:
            reserve()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of the dtype and shape that were laid out."""
        spec = self._specs[name]
        assert (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) == (spec.dtype, spec.shape), name
        self._begin(name)
        self._write_at(self._data_start + self._offsets[name], tensor_bytes(tensor))

    def write_pieces(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a tensor's bytes as they come."""
        self._begin(name)
        start = position = self._data_start + self._offsets[name]
        for piece in pieces:
            self._write_at(position, piece)
            position += len(piece)
        assert position - start == self._specs[name].num_bytes, name

    def lacks(self, name: str) -> bool:
        """Say whether a tensor has not been written yet."""
        return name in self._missing

    def finish(self) -> None:
        """Sync and close. Every tensor has been written."""
        assert not self._missing, f"{self.path}: never written: {sorted(self._missing)[:3]}"
        if self._behind is not None:
            self._behind.drain()
        self._hash_until(self.num_bytes)
        os.fsync(self._file.fileno())
        self._file.close()

    @property
    def sha256(self) -> str:
        """The finished file's SHA-256, in hexadecimal."""
        assert self._file.closed
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close; after an error, without finishing."""
        if self._behind is not None:
            self._behind.close()
        self._file.close()

    def _begin(self, name: str) -> None:
        assert name in self._missing, f"{name} is written twice"
        self._missing.remove(name)

    def _write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if self._behind is not None:
            self._behind.write(lambda: self._write_behind(offset, view), view.nbytes)
            return
        if offset == self._hashed:
            self._hashed += view.nbytes
            self._digest.update(view)
        self._write_out(offset, view)

    def _write_out(self, offset: int, view: memoryview) -> None:
        while view:
            written = os.pwrite(self._file.fileno(), view[: 1 << 30], offset)
            view, offset = view[written:], offset + written
            self._unsynced_bytes += written

    def _write_behind(self, offset: int, view: memoryview) -> None:
        """Write, and have the disk and the digest follow. Only the writer's thread calls this."""
        assert self._behind is not None
        self._write_out(offset, view)
        if self._unsynced_bytes >= SYNC_BYTES:
            self._unsynced_bytes = 0
            self._behind.sync(lambda: os.fdatasync(self._file.fileno()))
        if view.nbytes:
            self._beyond_hole[offset] = offset + view.nbytes
        while self._whole_until in self._beyond_hole:
            self._whole_until = self._beyond_hole.pop(self._whole_until)
        end = self._whole_until
        self._behind.hash(lambda: self._hash_until(end))

    def _hash_until(self, end: int) -> None:
        """Read back and hash what is not hashed yet, up to a byte of the file."""
        buffer = memoryview(bytearray(HASH_BYTES))
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._hashed)
            while self._hashed < end:
                count = file.readinto(buffer[: min(HASH_BYTES, end - self._hashed)])
                if not count:
                    raise TruncatedShardError(f"{self.path} became shorter while it was written")
                self._digest.update(buffer[:count])
                self._hashed += count
                self.bytes_read_back += count


class _Behind:
    """A thread that writes, with a bound on the bytes that wait, and threads that follow at their own pace.

    One of them hashes; one has the disk catch up.
    """

    def __init__(self) -> None:
        self._writer, self._hasher, self._syncer = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"moe4-{name}")
            for name in ("writer", "hasher", "syncer")
        )
        self._hashed: Future[None] | None = None
        self._synced: Future[None] | None = None
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._waiting_bytes = 0

    def write(self, write: Callable[[], None], num_bytes: int) -> None:
        """Have `write` called after those before it."""
        self._waiting.append((self._writer.submit(write), num_bytes))
        self._waiting_bytes += num_bytes
        while self._waiting_bytes > BEHIND_BYTES or (self._waiting and self._waiting[0][0].done()):
            self._take()

    def hash(self, update: Callable[[], None]) -> None:
        """Have `update` called after those before it."""
        if self._hashed is not None and self._hashed.done():
            self._hashed.result()
        self._hashed = self._hasher.submit(update)

    def sync(self, sync: Callable[[], None]) -> None:
        """Have `sync` called unless one is under way."""
        if self._synced is None or self._synced.done():
            self._synced = self._syncer.submit(sync)

    def drain(self) -> None:
        """Wait for everything; raises what went wrong in the threads."""
        while self._waiting:
            self._take()
        for last in (self._hashed, self._synced):
            if last is not None:
                last.result()

    def close(self) -> None:
        """End the threads; what waits is dropped."""
        for thread in (self._writer, self._hasher, self._syncer):
            thread.shutdown(wait=True, cancel_futures=True)

    def _take(self) -> None:
        future, num_bytes = self._waiting.popleft()
        self._waiting_bytes -= num_bytes
        future.result()
