"""Shards that are fetched as a run's layers need them, two ahead, and dropped when they are not needed soon.

Threads fetch what is in the window (`window.py`) into the run's work folder:

    source-00003.safetensors   a whole shard, its checksum compared
    source-00003.incomplete    one on its way; a resumed run continues it

A shard that leaves the window is removed. One that is read again at the end, as that of the embeddings, is
fetched again. Before the steps are known nothing is written: tensors are read by range requests.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from moe4.arguments import argument
from moe4.checkpoint.header import COPY_BYTES, Shard, StoredTensor, iterate_bytes
from moe4.checkpoint.provider import Identity
from moe4.hub.meter import DownloadMeter
from moe4.hub.remote_file import WHOLE_BYTES, FetchStoppedError, RemoteFile, part_path
from moe4.hub.repository import Listing
from moe4.hub.window import MOST_HELD, ReadingOrder

NUM_FETCHERS = 2
NUM_READERS = 8
CLOSE_SECONDS = 2.0
MUCH_EXCESS = 1.5  # times the bytes of the shards; two of Kimi-K2's are fetched twice


class ShardStream:
    """The shards of a pinned repository, as a `ShardProvider`. The work folder is written after `expect`."""

    def __init__(self, listing: Listing, names: Sequence[str], work: Path) -> None:
        """names: of the shards that make the checkpoint."""
        self.pin, self.meter = listing.pin, DownloadMeter()
        self._top_names, self.work = listing.top_names(), work
        self._paths = {
            name: work / f"source-{number:05d}.safetensors" for number, name in enumerate(sorted(names), 1)
        }
        self._names = {path: name for name, path in self._paths.items()}
        self._readers = ThreadPoolExecutor(max_workers=NUM_READERS, thread_name_prefix="moe4-headers")
        self._opened: dict[str, Future[tuple[RemoteFile, Shard]]] = {}
        self._state = threading.Condition()
        self._order = ReadingOrder((), {})
        self._num_reading = 0
        self._held: dict[str, bool] = {}  # name: whether it is whole
        self._used: Counter[str] = Counter()
        self._failed: dict[str, Exception] = {}
        self._fetchers: list[threading.Thread] = []
        self._stop = threading.Event()

    def names(self) -> Collection[str]:
        """Return the names at the top of the repository; a folder's ends in a slash."""
        return self._top_names

    def has(self, name: str) -> bool:
        """Say whether the repository has a shard of this name."""
        return name in self._paths

    def shard(self, name: str) -> Shard:
        """Return a shard's header. All are asked for at once when the first one is."""
        with self._state:
            for other in self._paths if not self._opened else ():
                self._opened[other] = self._readers.submit(self._open, other)
        return self._opened[name].result()[1]

    def read_ranges(self, shard: Shard, starts: Collection[int], num_bytes: int) -> list[bytes]:
        """Return up to `num_bytes` of a shard from each start."""
        file, _ = self._opened[self._names[shard.path]].result()
        if shard.num_bytes <= WHOLE_BYTES:
            whole = file.read(0, shard.num_bytes)
            return [whole[start : start + num_bytes] for start in starts]
        return list(self._readers.map(lambda start: file.read(start, num_bytes), starts))

    def pieces(self, stored: StoredTensor) -> Iterator[bytes]:
        """Yield a tensor's bytes in pieces of at most 16 MiB."""
        if self._fetchers:
            with self.holding((stored.path,)):
                yield from iterate_bytes(stored)
            return
        file, _ = self._opened[self._names[stored.path]].result()
        end = stored.offset + stored.spec.num_bytes
        for start in range(stored.offset, end, COPY_BYTES):
            yield file.read(start, min(COPY_BYTES, end - start))

    def identify(self, shard: Shard) -> Identity:
        """Return the size alone: of a pinned commit's files nothing else can change."""
        return [shard.num_bytes, 0, 0, 0]

    def holding(self, paths: Collection[Path]) -> AbstractContextManager[None]:
        """Wait until shards are whole at their paths; keep them while the context is open."""
        return self._holding([self._names[path] for path in sorted(paths)])

    @contextmanager
    def _holding(self, names: list[str]) -> Iterator[None]:
        assert self._fetchers, "shards are read before it is known which are needed"
        with self._state:
            self._used.update(names)
            for name in names:
                self._failed.pop(name, None)  # it is tried once more before the run gives up
            self._state.notify_all()
        try:
            with self._state:
                while not all(self._held.get(name) for name in names):
                    for name in names:
                        if name in self._failed:
                            raise self._failed[name]
                    self._state.wait()
                self._num_reading += 1
                for name in names:
                    self._order.read(name)
            try:
                yield
            finally:
                with self._state:
                    self._num_reading -= 1
        finally:
            with self._state:
                self._used.subtract(names)
                self._used = +self._used
                self._state.notify_all()

    def expect(self, steps: Sequence[Collection[Path]], say: Callable[[str], None]) -> None:
        """Begin to fetch for these steps. Raises HubError."""
        self._order = self._reading_order(steps)
        self.meter.begin([self._size(name) for name in self._order.downloads()])
        self.meter.say = say
        excess = self._order.excess()
        if excess > MUCH_EXCESS:
            say(
                f"warning: layers read shards back and forth: {excess:.1f} times their bytes are fetched; if "
                f"there is room for all of them, leave {argument('stream')} out"
            )
        self._take_over()
        for number in range(NUM_FETCHERS):
            thread = threading.Thread(target=self._run, name=f"moe4-fetch-{number}", daemon=True)
            self._fetchers.append(thread)
            thread.start()

    def step_done(self) -> None:
        """Leave the first step behind, and with it the shards that are not needed soon."""
        with self._state:
            self._order.step_done()
            self._state.notify_all()

    def room(self, steps: Sequence[Collection[Path]]) -> int:
        """Return the most bytes that the steps will hold at a time, beside what an earlier run has left."""
        most = self._reading_order(steps).peak_bytes()
        files = [file for path in self._names for file in (path, part_path(path))]
        return max(0, most - sum(file.stat().st_size for file in files if file.is_file()))

    def close(self) -> None:
        """End the threads. What is on its way is left for a resumed run."""
        self._stop.set()
        with self._state:
            self._state.notify_all()
        self._readers.shutdown(wait=False, cancel_futures=True)
        for thread in self._fetchers:
            thread.join(CLOSE_SECONDS)

    def _open(self, name: str) -> tuple[RemoteFile, Shard]:
        file = RemoteFile(self.pin, name)
        return file, file.header(self._paths[name])

    def _take_over(self) -> None:
        """Keep what an earlier run has left of the window's shards; remove what it has left of others."""
        window = self._order.window()
        parts = {part_path(path) for path in self._names}
        for path in self.work.glob("source-*"):
            if path not in self._names and path not in parts:  # of another checkpoint
                path.unlink()
        for name, path in self._paths.items():
            file, header = self._opened[name].result()
            if name in window and file.is_whole(path, header):
                self._held[name] = True
                self.meter.skip(header.num_bytes, whole=True)
                continue
            path.unlink(missing_ok=True)
            part = part_path(path)
            if name in window and part.is_file():
                self.meter.skip(min(part.stat().st_size, header.num_bytes), whole=False)
            else:
                part.unlink(missing_ok=True)

    def _reading_order(self, steps: Sequence[Collection[Path]]) -> ReadingOrder:
        names = [[self._names[path] for path in step] for step in steps]
        return ReadingOrder(names, {name: self._size(name) for name in self._paths})

    def _size(self, name: str) -> int:
        return self._opened[name].result()[1].num_bytes

    def _next(self) -> str | None:
        """Drop what may go; return the shard to be fetched now. The lock is held.

        What is read outside the window, as only a guess at the order could have it, takes the place of the
        window's last. More than the window is held only where reads that wait for each other would for ever.
        """
        window = self._order.window()
        wanted = [name for name in self._used if name not in window]
        self._drop(name for name in self._held if name not in window)
        missing = [name for name in (*wanted, *window) if name not in self._held and name not in self._failed]
        if not missing:
            return None
        if missing[0] in wanted or self._used[missing[0]]:
            if len(self._held) >= MOST_HELD:
                self._drop([name for name in reversed(window) if self._may_drop(name)][:1])
            is_stuck = all(self._held.values()) and not self._num_reading
            return missing[0] if len(self._held) < MOST_HELD or is_stuck else None
        return missing[0] if len(self._held) < MOST_HELD else None

    def _drop(self, names: Iterable[str]) -> None:
        for name in [name for name in names if self._may_drop(name)]:
            del self._held[name]
            self._paths[name].unlink(missing_ok=True)

    def _may_drop(self, name: str) -> bool:
        """Say whether a shard is whole and nobody reads it."""
        return self._held.get(name, False) and not self._used[name]

    def _run(self) -> None:
        """Fetch until there is nothing more to fetch, or the run has ended."""
        while not self._stop.is_set():
            with self._state:
                name = self._next()
                if name is None:
                    self._state.wait()
                    continue
                self._held[name] = False
            failure: Exception | None = None
            try:
                self._fetch(name)
            except FetchStoppedError:
                return
            except Exception as error:  # whatever it is, the thread that waits for the shard raises it
                failure = error
            with self._state:
                if failure is None:
                    self._held[name] = True
                else:
                    del self._held[name]
                    self._failed[name] = failure
                self._state.notify_all()

    def _fetch(self, name: str) -> None:
        file, header = self._opened[name].result()
        with self.meter.shard(name):
            file.fetch(self._paths[name], header, self.meter.received, self._stop)
