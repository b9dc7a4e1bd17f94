"""The smallest size of a fault that each measure notices, found by bisection over a ladder of sizes."""

import math
from collections.abc import Collection, Sequence

from moe4.evaluate.result_files import MeasureName, Noticed

Measures = dict[MeasureName, Noticed]


class Ladder:
    """What was found at some of the sizes that a fault can have, and which to try next."""

    def __init__(self, sizes: Sequence[float], usual: float) -> None:
        """Sizes rise; the usual one is among them, and is tried first."""
        self._sizes, self._usual = list(sizes), list(sizes).index(usual)
        self._found: dict[int, Measures] = {}

    @property
    def usual(self) -> Measures:
        """What was found at the usual size."""
        return self._found[self._usual]

    @staticmethod
    def most_rounds(sizes: Sequence[float]) -> int:
        """Return after how many rounds every bisection has ended."""
        return 1 + math.ceil(math.log2(len(sizes) + 1)) if sizes else 1

    def next_sizes(self, measures: Collection[MeasureName]) -> list[float]:
        """Return the sizes at which bisection needs these measures now; none once all have ended."""
        if not self._found:
            return [self._sizes[self._usual]]
        brackets = [self._bracket(measure) for measure in self.usual if measure in measures]
        middles = {(low + high) // 2 for low, high in brackets if high - low > 1}
        return [self._sizes[place] for place in sorted(middles)]

    def record(self, size: float, found: Measures) -> None:
        """Take down what some measures say at a size; at the usual one, all of them."""
        self._found.setdefault(self._sizes.index(size), {}).update(found)

    def smallest(self, measure: MeasureName) -> float | None:
        """Return the smallest size from which on every size tried was noticed; None if there is none."""
        _, high = self._bracket(measure)
        return self._sizes[high] if high < len(self._sizes) else None

    def _bracket(self, measure: MeasureName) -> tuple[int, int]:
        """Return the places of the largest size that went unnoticed, and of the next that was noticed."""
        tried = {place: found[measure].noticed for place, found in self._found.items() if measure in found}
        low = max((place for place, noticed in tried.items() if not noticed), default=-1)
        return low, min((place for place in tried if place > low), default=len(self._sizes))
