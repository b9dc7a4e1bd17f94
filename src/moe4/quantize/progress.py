"""Progress on stderr: a live bar on a terminal, one line per layer elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moe4.quantize.audit import LayerRecord


class ProgressReporter:
    """Report steps and layers. A step is one expert, or the rest of one layer."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True, quiet=quiet)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._done = self._skipped = 0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, total_steps: int, done_steps: int) -> None:
        """Begin counting; `done_steps` were committed by an earlier run."""
        self._total, self._done, self._skipped = total_steps, done_steps, done_steps
        self._start = time.monotonic()
        if self._console.is_terminal and not self._console.quiet:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task("", total=total_steps, completed=done_steps)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, description: str) -> None:
        """Count one step."""
        self._done += 1
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self._done, description=description)

    def layer_done(self, record: LayerRecord, num_layers: int, seconds: float) -> None:
        """Print what a layer came to."""
        took = f"{seconds:.1f} s, {self._left()} left"
        self.say(f"layer {record.layer + 1}/{num_layers}: {record.describe()}, {took}")

    def _left(self) -> str:
        worked = self._done - self._skipped
        if not worked:
            return "unknown"
        seconds = round((time.monotonic() - self._start) / worked * (self._total - self._done))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}"
