"""Direct reads past the page cache, and how fast they are."""

import contextlib
import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moe4.errors import CheckpointError

READ_BYTES = 4 << 20
BLOCK_BYTES = 4096
NUM_READERS = 8


class DirectFile:
    """A file that is read past the page cache, in whole blocks, by any thread."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises CheckpointError where its file system has no direct I/O."""
        self.path = path
        self.num_bytes = path.stat().st_size
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read with direct I/O ({error.strerror}): leave the expert cache off"
            ) from None

    def read(self, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset`, both on blocks' boundaries; what lies past the file's end is left."""
        done = 0
        wanted = min(len(target), self.num_bytes - offset)
        while done < wanted:
            count = os.preadv(self._descriptor, [target[done:]], offset + done)
            if count <= 0:
                raise CheckpointError(f"{self.path} ended while it was read: was it replaced? start again")
            done += count

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def allocate_for_reads(num_bytes: int, *, huge_pages: bool) -> mmap.mmap:
    """Return memory of this process's own, in huge pages where the system has them, or in none.

    A direct read becomes as many requests as the disk's limit on pieces of memory demands: on a virtual disk
    that takes 254, huge pages doubled and tripled the rate (benchmarks/results/loading_zen4_202611.md).
    Python's own default is shared memory, which never comes in huge pages.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    return memory


def measure_disk_rate(paths: Sequence[Path], *, huge_pages: bool, seconds: float = 1.0) -> float | None:
    """Return bytes a second that direct reads spread over the files give; None where there is no direct I/O.

    huge_pages: whether what is to be predicted reads into huge pages, as the expert cache does, or into small
        ones, as the system's page cache does.

    Takes about `seconds`. Memory: 32 MiB.
    """
    large = [path for path in paths if path.stat().st_size >= READ_BYTES]
    if not large:
        return None
    with contextlib.ExitStack() as stack:
        try:
            files = [DirectFile(path) for path in large]
        except CheckpointError:
            return None
        for file in files:
            stack.callback(file.close)
        memory = memoryview(allocate_for_reads(NUM_READERS * READ_BYTES, huge_pages=huge_pages))
        end = time.monotonic() + seconds

        def read_some(reader: int) -> int:
            buffer = memory[reader * READ_BYTES : (reader + 1) * READ_BYTES]
            total = 0
            for turn in range(1 << 30):
                file = files[(reader + turn * NUM_READERS) % len(files)]
                # Spread over the file by an irrational step, so that no read is near the one before.
                place = (reader * 0.7548776662 + turn * 0.6180339887) % 1
                file.read(int(place * (file.num_bytes - READ_BYTES)) // BLOCK_BYTES * BLOCK_BYTES, buffer)
                total += READ_BYTES
                if time.monotonic() >= end:
                    break
            return total

        began = time.monotonic()
        with ThreadPoolExecutor(NUM_READERS) as pool:
            total = sum(pool.map(read_some, range(NUM_READERS)))
        return total / (time.monotonic() - began)
