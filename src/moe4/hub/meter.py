"""How fast a run's downloads are, and how long those that are left will take."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from moe4.units import clock, format_bytes

CHANGE_SECONDS = 0.5


class DownloadMeter:
    """Counts bytes over the seconds in which at least one shard was on its way."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.say: Callable[[str], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        self._now, self._lock = now, threading.Lock()
        self._left_bytes = self._received = 0
        self._num_shards = self._num_done = 0
        self._active: list[str] = []
        self._seconds, self._since, self._changed = 0.0, 0.0, 0.0

    def begin(self, sizes: Sequence[int]) -> None:
        """Take notice of every download to come."""
        self._left_bytes, self._num_shards = sum(sizes), len(sizes)

    def skip(self, num_bytes: int, *, whole: bool) -> None:
        """Take notice of bytes that are there already, of a whole shard or of one begun."""
        with self._lock:
            self._left_bytes -= num_bytes
            self._num_shards -= whole

    def received(self, num_bytes: int) -> None:
        """Count bytes that came; fewer than none where a server began a file anew."""
        with self._lock:
            self._received += num_bytes
            self._left_bytes -= num_bytes
            now = self._now()
            is_time = now - self._changed >= CHANGE_SECONDS
            self._changed = now if is_time else self._changed
        if is_time:
            self.on_change()

    @contextmanager
    def shard(self, name: str) -> Iterator[None]:
        """Count the time in which a shard is on its way; say what it took when it is there."""
        with self._lock:
            if not self._active:
                self._since = self._now()
            self._active.append(name)
        try:
            yield
            with self._lock:
                self._num_done += 1
            self.say(
                f"fetched {name}, {self._num_done} of {self._num_shards}: {format_bytes(self.rate())}/s, "
                f"{clock(self.seconds_left())} of downloads left"
            )
        finally:
            with self._lock:
                self._active.remove(name)
                if not self._active:
                    self._seconds += self._now() - self._since

    def rate(self) -> float:
        """Return bytes a second; 0 before any came."""
        seconds = self._seconds + (self._now() - self._since if self._active else 0.0)
        return self._received / seconds if seconds > 0 else 0.0

    def seconds_left(self) -> float:
        """Return how long the downloads that are left will take at the rate so far."""
        rate = self.rate()
        return max(0, self._left_bytes) / rate if rate > 0 else 0.0

    def describe(self) -> str:
        """Return what is on its way, in a few words."""
        with self._lock:
            active = ", ".join(self._active)
        return f"fetching {active}, {format_bytes(self.rate())}/s" if active else ""
