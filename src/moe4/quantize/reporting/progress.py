"""Progress on stderr: a live bar on a terminal, one line per layer elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from moe4.escape import visible_lines
from moe4.hub.meter import DownloadMeter
from moe4.quantize.reporting.layer_record import LayerRecord
from moe4.quantize.reporting.time_left import LayerTime, TimeLeft
from moe4.units import clock, format_bytes, layer_done

LINE_SECONDS = 10.0  # between two lines of a download


class ProgressReporter:
    """Report experts and layers, with what is left of the time."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True, quiet=quiet)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._time_left = TimeLeft([])
        self._downloads: DownloadMeter | None = None
        self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, shards: list[LayerTime], num_done: int = 0) -> None:
        """Begin after the first `num_done` shards, which an earlier run has committed."""
        self._time_left = TimeLeft(shards, num_done)
        if self._console.is_terminal and not self._console.quiet:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left"),
                TextColumn("{task.fields[fetch]}"),
                console=self._console,
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task("", total=1.0, left=self._left(), fetch="")

    def follow(self, downloads: DownloadMeter) -> None:
        """Show a run's downloads, and do not promise to be done before them."""
        self._downloads = downloads
        downloads.on_change = self._show_downloads

    def downloading(self, done: int, total: int) -> None:
        """Say now and then how much of a download before the run is done."""
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS:
            self._said = now
            self.say(f"downloading: {100 * done // total} % of {format_bytes(total)}")

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(visible_lines(text), markup=False, highlight=False, soft_wrap=True)

    def expert_done(self, description: str) -> None:
        """Count an expert."""
        self._time_left.expert_done()
        self._show(description)

    def shard_done(self, description: str) -> None:
        """Count a layer, or what is beside the layers; its experts have been counted."""
        self._time_left.layer_done()
        self._show(description)

    def layer_done(self, record: LayerRecord, num_layers: int, seconds: float) -> None:
        """Print what a layer came to that is committed."""
        self._time_left.layer_committed(record.layer)
        took = f"{seconds:.1f} s, {self._left()} left"
        self.say(f"{layer_done(record.layer, num_layers)}: {record.describe()}, {took}")

    def _show(self, description: str) -> None:
        if self._live is not None and self._task is not None:
            done = self._time_left.fraction()
            self._live.update(self._task, completed=done, description=description, left=self._left())

    def _show_downloads(self) -> None:
        if self._live is not None and self._task is not None and self._downloads is not None:
            fetch = visible_lines(self._downloads.describe())
            self._live.update(self._task, fetch=fetch, left=self._left())

    def _left(self) -> str:
        downloads = 0.0 if self._downloads is None else self._downloads.seconds_left()
        return clock(max(self._time_left.seconds(), downloads))
