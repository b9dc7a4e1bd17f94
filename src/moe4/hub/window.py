"""Which shards a run holds at a time, from the order in which it reads them.

A run is a list of steps, one for each shard of the release; a step is the shards of the source that it reads,
in order, a shard again where the run comes back to it. The window is the next three different ones. It moves
when a step is over; within a step it moves only where that step alone reads more than three. A shard that the
run comes back to after that is fetched again.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

MOST_HELD = 3

Window = tuple[str, ...]


class ReadingOrder:
    """The window of a run, moved by what it reads. Not for several threads at once."""

    def __init__(self, steps: Sequence[Sequence[str]], sizes: Mapping[str, int]) -> None:
        self._steps, self._sizes = steps, sizes
        self._lay_out()
        self._step = self._place = 0

    def window(self) -> Window:
        """Return the shards that may be held, in the order in which they are read."""
        return self._windows[self._step][self._place] if self._step < len(self._windows) else ()

    def read(self, name: str) -> None:
        """Take notice of a read: the window moves on within a step that is wider than it."""
        if self._step < len(self._steps) and len(self._windows[self._step]) > 1:
            step = self._steps[self._step]
            later = (place for place in range(self._place, len(step)) if step[place] == name)
            self._place = next(later, self._place)

    def step_done(self) -> None:
        """Go to the next step."""
        self._step, self._place = self._step + 1, 0

    def downloads(self) -> list[str]:
        """Return every shard to be fetched, in order; one that is fetched again is there again."""
        held: set[str] = set()
        order: list[str] = []
        for window in chain.from_iterable(self._windows):
            order += [name for name in window if name not in held]
            held = set(window)
        return order

    def excess(self) -> float:
        """Return how many times the shards' bytes will be fetched in all; 1 if no shard comes twice."""
        once = sum(self._sizes[name] for name in set(chain.from_iterable(self._steps)))
        return sum(self._sizes[name] for name in self.downloads()) / max(1, once)

    def peak_bytes(self) -> int:
        """Return the most bytes that a window has."""
        windows = chain.from_iterable(self._windows)
        return max((sum(self._sizes[name] for name in window) for window in windows), default=0)

    def _lay_out(self) -> None:
        """Find every window there will be: one for a step that fits into it, else one for each read."""
        self._windows: list[list[Window]] = []
        following: Window = ()
        for step in reversed(self._steps):
            places = []
            for name in reversed(step):
                following = (name, *(other for other in following if other != name))[:MOST_HELD]
                places.append(following)
            fits = len(set(step)) <= MOST_HELD
            self._windows.append([following] if fits else places[::-1])
        self._windows.reverse()
