"""Shards mapped into memory read-only: their pages are the file's own, shared by all that map it."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moe4.checkpoint.header import Shard, StoredTensor
from moe4.errors import CheckpointError

PAGE_BYTES = mmap.PAGESIZE
DEFAULT_READAHEAD_BYTES = 128 << 10  # Linux's own, where a device does not say
_WILLNEED = 3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class MappedShard:
    """One shard in memory, read-only. The mapping lasts as long as this object."""

    def __init__(self, shard: Shard) -> None:
        """Map the whole file; nothing of it is read. Raises CheckpointError where that cannot be done."""
        self.path = shard.path
        self.num_bytes = shard.num_bytes
        try:
            with shard.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), shard.num_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{shard.path} cannot be mapped into memory ({error}): copy the release to a local disk, or "
                "load it with --load-format auto"
            ) from None
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self.address = int(self._bytes.ctypes.data)
        self.readahead_bytes = readahead_bytes(shard.path)

    def address_of(self, stored: StoredTensor) -> int:
        """Return where a tensor of this shard begins in memory."""
        assert stored.path == self.path
        return self.address + stored.offset

    def advise_random(self) -> None:
        """Let the system read single pages, not their surroundings: for what is asked for ahead of use."""
        self._map.madvise(mmap.MADV_RANDOM)


def read_ahead(ranges: Iterable[tuple[int, int]], step_bytes: int) -> None:
    """Ask the system to read mapped memory, (address, bytes) each, and return while it reads.

    One request of Linux reads `step_bytes`, its device's readahead, at most: larger ranges need several.
    """
    for address, num_bytes in ranges:
        first = address // PAGE_BYTES * PAGE_BYTES
        end = address + num_bytes
        for start in range(first, end, step_bytes):
            if _libc.madvise(start, min(step_bytes, end - start), _WILLNEED):
                code = ctypes.get_errno()
                raise OSError(code, f"madvise: {os.strerror(code)}")


def readahead_bytes(path: Path) -> int:
    """Return how much one request for readahead reads of a file."""
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        return max(PAGE_BYTES, int(setting.read_text()) << 10)
    except (OSError, ValueError):  # not a device of its own, such as overlayfs
        return DEFAULT_READAHEAD_BYTES


def resident_bytes(address: int, num_bytes: int) -> int:
    """Return how much of mapped memory is in the page cache now."""
    first = address // PAGE_BYTES * PAGE_BYTES
    pages = -(-(address + num_bytes - first) // PAGE_BYTES)
    flags = np.zeros(pages, dtype=np.uint8)
    if _libc.mincore(first, address + num_bytes - first, flags.ctypes.data):
        code = ctypes.get_errno()
        raise OSError(code, f"mincore: {os.strerror(code)}")
    return int((flags & 1).sum()) * PAGE_BYTES
