"""Where a checkpoint's shards come from: its folder has them all, or they are fetched when they are needed.

Everything that reads a shard's header or data goes through a provider. `moe4/hub/stream.py` has the one that
fetches.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from moe4.checkpoint.header import Shard, StoredTensor, iterate_bytes, read_shard
from moe4.files.regular import require_inside

Identity = list[int]
"""Of a file: size, inode, and the times at which its contents and its entry changed, in nanoseconds."""


class ShardProvider(Protocol):
    """A checkpoint's shards, by their names in it. Any thread may call any of this."""

    def names(self) -> Collection[str]:
        """Return the names of the files that lie at the top of the checkpoint, shards and others."""
        ...

    def has(self, name: str) -> bool:
        """Say whether there is a shard of this name."""
        ...

    def shard(self, name: str) -> Shard:
        """Return a shard's header, read and checked."""
        ...

    def read_ranges(self, shard: Shard, starts: Collection[int], num_bytes: int) -> list[bytes]:
        """Return up to `num_bytes` of a shard from each start; fewer only at its end."""
        ...

    def pieces(self, stored: StoredTensor) -> Iterator[bytes]:
        """Yield a tensor's bytes in pieces of at most 16 MiB."""
        ...

    def holding(self, paths: Collection[Path]) -> AbstractContextManager[None]:
        """Have shards at their paths, whole, for as long as the context is open."""
        ...

    def identify(self, shard: Shard) -> Identity:
        """Return what tells a shard's file from another, or from itself after it was written to."""
        ...

    def room(self, steps: Sequence[Collection[Path]]) -> int:
        """Return the bytes of shards that a run in these steps has to keep, beside what lies there for good.

        A step is what a shard of the release is made of: the paths that are read, in order.
        """
        ...

    def expect(self, steps: Sequence[Collection[Path]], say: Callable[[str], None]) -> None:
        """Take notice that a run begins that reads shards in these steps."""
        ...

    def step_done(self) -> None:
        """Take notice that the first of the steps left is over."""
        ...

    def close(self) -> None:
        """Take notice that the run is over, or has failed."""
        ...


class FolderShards:
    """Shards that all lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> Collection[str]:
        """Return the names of what lies in the folder."""
        return [path.name for path in self._folder.iterdir()]

    def has(self, name: str) -> bool:
        """Say whether there is anything of this name."""
        return os.path.lexists(self._folder / name)

    def shard(self, name: str) -> Shard:
        """Return a shard's header. Raises UnsafePathError where a link leads out of the checkpoint."""
        path = self._folder / name
        require_inside(path, self._folder)
        return read_shard(path)

    def read_ranges(self, shard: Shard, starts: Collection[int], num_bytes: int) -> list[bytes]:
        """Return up to `num_bytes` of a shard from each start."""
        found = []
        with shard.path.open("rb", buffering=0) as file:
            for start in starts:
                file.seek(start)
                found.append(file.read(num_bytes))
        return found

    def pieces(self, stored: StoredTensor) -> Iterator[bytes]:
        """Yield a tensor's bytes in pieces of at most 16 MiB."""
        return iterate_bytes(stored)

    def holding(self, paths: Collection[Path]) -> AbstractContextManager[None]:
        """Do nothing: every shard is there."""
        return nullcontext()

    def identify(self, shard: Shard) -> Identity:
        """Return the size, inode and times of a shard's file."""
        found = shard.path.stat()
        return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]

    def room(self, steps: Sequence[Collection[Path]]) -> int:
        """Return 0: nothing is added to the folder."""
        return 0

    def expect(self, steps: Sequence[Collection[Path]], say: Callable[[str], None]) -> None:
        """Do nothing."""

    def step_done(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
