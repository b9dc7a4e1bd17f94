"""What a run has read of its source: the SHA-256 of every tensor, taken as it is read.

A resumed run does not read again what has been committed. It asks whether the source's files are the ones
that were there when the run began, by size, times of change and inode. Where one is not, as after a copy to
another place, what had been read of it is read again and compared. What had not been read yet need not be
what it was: the release then equals one made of the source as it is now. A file that was written in place is
another matter: it is refused, unless all of it had been read and is the same.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from moe4.checkpoint.provider import Identity
from moe4.errors import CheckpointError, ResumeError

if TYPE_CHECKING:
    from moe4.checkpoint.source import Checkpoint

NUM_READERS = 8


class ReadLog:
    """The SHA-256 of tensors that were read, by name; an FP8 weight's covers its scales. For any thread."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self._lock = threading.Lock()

    def expect(self, known: Mapping[str, str]) -> None:
        """Hold later reads to what was read before. Raises CheckpointError where that differs already."""
        for name, sha256 in known.items():
            self._compare(name, sha256)

    def add(self, name: str, pieces: Iterable[memoryview | bytes]) -> None:
        """Record a tensor's bytes. Raises CheckpointError if they were others before."""
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        self.note(name, digest.hexdigest())

    def note(self, name: str, sha256: str) -> None:
        """Record a tensor's SHA-256. Raises CheckpointError if it was another before."""
        self._compare(name, sha256)
        with self._lock:
            self._new[name] = sha256

    def take(self) -> dict[str, str]:
        """Return what was recorded since the last call."""
        with self._lock:
            new, self._new = self._new, {}
        return dict(sorted(new.items()))

    def _compare(self, name: str, sha256: str) -> None:
        with self._lock:
            before = self._known.setdefault(name, sha256)
        if before != sha256:
            raise CheckpointError(
                f"{name} of the source has changed since this run first read it; put the old file "
                "back, and begin again in an empty folder"
            )


def require_same_source(
    checkpoint: "Checkpoint",
    known: Mapping[str, str],
    before: Mapping[str, Identity],
    unread: Collection[str],
    say: Callable[[str], None],
) -> None:
    """Make sure that what was read of a source is still what it was; read it again where files changed.

    known: SHA-256 of the tensors that were read; before: every shard's identity when the run began; unread:
    the tensors still to be read. Raises ResumeError.
    """
    changed, in_place = set(), set()
    for name, shard in checkpoint.shards.items():
        now, then = checkpoint.provider.identify(shard), before.get(name)
        if now != then:
            changed.add(shard.path)
        if then is not None and now[1] == then[1] and (now[0], now[2]) != (then[0], then[2]):
            in_place.add(shard.path)
    again = [name for name in known if changed & checkpoint.paths(name)]
    if changed:
        say(
            f"{len(changed)} of {len(checkpoint.shards)} files of the source are other files than when the "
            f"run began, or were touched: reading {len(again)} tensors again to compare"
        )
    with ThreadPoolExecutor(min(NUM_READERS, os.cpu_count() or 1)) as threads:
        for name, sha256 in zip(again, threads.map(checkpoint.tensor_sha256, again), strict=True):
            if sha256 != known[name]:
                threads.shutdown(wait=False, cancel_futures=True)
                where = ", ".join(sorted(map(str, checkpoint.paths(name))))
                raise ResumeError(
                    f"{where}: {name} has changed since this run read it; put the old file back, or "
                    "begin again in an empty folder"
                )
    for name in unread:
        for path in sorted(in_place & checkpoint.paths(name)):
            raise ResumeError(
                f"{path} was written to after the run began, before {name} was read from it; put the old "
                "file back, or begin again in an empty folder"
            )
