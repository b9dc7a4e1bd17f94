"""How far an operation is: what whoever started it hears, in whatever words they then put it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from moe4.units import clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One step of an operation.

    stage: what is being done, such as `layer 3 expert 17`.
    done: the part of the whole work that is done, 0 to 1; None where it is not known.
    layer, of: the decoder layer that is being worked on, from 0, and how many there are; None elsewhere.
    seconds_left: the estimate of the time to the end; None before there is one.
    """

    stage: str
    done: float | None = None
    layer: int | None = None
    of: int | None = None
    seconds_left: float | None = None

    def __str__(self) -> str:
        share = "" if self.done is None else f", {int(100 * self.done)} %"
        left = "" if self.seconds_left is None else f", {clock(self.seconds_left)} left"
        return f"{self.stage}{share}{left}"


FIRST_ESTIMATE = (
    0.02  # of the work: before that, what was done says more of how the run began than of its pace
)

OnProgress = Callable[[Progress], None]
"""Called from the thread that does the work, or from several of them, one at a time."""


def ignore(_: Progress) -> None:
    """Hear of a step and do nothing."""


class Pace:
    """Tells steps of work that is done evenly, from which the time left follows after FIRST_ESTIMATE."""

    def __init__(self, on_progress: OnProgress, stage: str) -> None:
        self._on_progress, self._stage, self._began = on_progress, stage, time.monotonic()

    def count(self, done: int, total: int) -> None:
        """Tell that `done` of `total` are done, in any unit."""
        self._tell(self._stage, done, total)

    def layer(self, done: int, total: int) -> None:
        """Tell that `done` of `total` layers are done."""
        number = min(done, total - 1)
        self._tell(f"{self._stage}, layer {number}", done, total, layer=number, of=total)

    def _tell(self, stage: str, done: int, total: int, **layers: int) -> None:
        share, left = 0.0, None
        if done and total:
            share = done / total
        if share >= FIRST_ESTIMATE:
            left = (time.monotonic() - self._began) * (total - done) / done
        self._on_progress(Progress(stage=stage, done=share, seconds_left=left, **layers))
