"""Progress of a command: a moving display on a terminal, an occasional line elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe4.cli import messages
from moe4.escape import visible
from moe4.progress import Progress
from moe4.units import clock

LINE_SECONDS = 30.0  # between two lines where there is no terminal


class Shown:
    """Shows the steps that the API reports; the API calls it. Shows nothing after `stop`."""

    def __init__(self, what: str) -> None:
        self._bar: Any = _make_bar() if messages.current.draws else None
        self._task = None if self._bar is None else self._bar.add_task(what, total=None, left="")
        self._said = time.monotonic()
        self._stopped = False

    def __call__(self, step: Progress) -> None:
        if self._stopped:
            return
        if self._bar is not None:
            total = None if step.done is None else 1.0
            left = "" if step.seconds_left is None else f"{clock(step.seconds_left)} left"
            name = visible(step.stage)
            self._bar.update(self._task, description=name, completed=step.done or 0.0, total=total, left=left)
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            messages.say(str(step))

    def start(self) -> None:
        """Start drawing."""
        if self._bar is not None:
            self._bar.start()
            messages.current.live = self._bar

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stop drawing while something is printed."""
        drawn = self._bar is not None and not self._stopped
        if drawn:
            messages.current.live = None
            self._bar.stop()
        yield
        if drawn:
            self.start()

    def stop(self) -> None:
        """Clear the display, and show nothing more."""
        self._stopped = True
        if self._bar is not None:
            messages.current.live = None
            self._bar.stop()


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True, force_terminal=True),
        transient=True,
        redirect_stdout=False,  # to where the bar is, which may be another place
        redirect_stderr=False,
    )


@contextmanager
def progress(what: str) -> Iterator[Shown]:
    """Yield an object that shows a command's steps; start it at once, as torch takes seconds to import."""
    shown = Shown(what)
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()
