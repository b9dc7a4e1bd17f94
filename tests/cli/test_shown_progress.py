"""What a command shows of its steps: lines now and then, or something that moves on a terminal."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from moe4.cli import messages
from moe4.cli import progress as shown_progress
from moe4.cli.progress import LINE_SECONDS, Shown, progress
from moe4.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bar:
    """Stands in for rich's bar, and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def add_task(self, what: str, **fields: Any) -> int:
        self.told.append((what, fields))
        return 7

    def update(self, task: int, **fields: Any) -> None:
        assert task == 7
        self.told.append(fields)

    def start(self) -> None:
        self.told.append("start")

    def stop(self) -> None:
        self.told.append("stop")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(messages, "say", lines.append)
    return lines


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bar]:
    bar = Bar()
    monkeypatch.setattr(messages.Messages, "draws", True)
    monkeypatch.setattr(shown_progress, "_make_bar", lambda: bar)
    yield bar
    messages.current.live = None


def test_without_a_terminal_a_line_comes_every_so_often(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("moe4.cli.progress.time.monotonic", clock)
    monkeypatch.setattr(messages.Messages, "draws", False)
    with progress("planning") as shown:
        for number in range(7):  # a step each ten seconds, the first at once
            shown(Progress(stage=f"step {number}", done=number / 8, seconds_left=60.0))
            clock.now += LINE_SECONDS / 3
    assert said == ["step 3, 37 %, 0:01:00 left", "step 6, 75 %, 0:01:00 left"]
    clock.now += LINE_SECONDS
    shown(Progress(stage="late"))
    assert len(said) == 2  # nothing after the end


def test_on_a_terminal_a_bar_moves(bar: Bar, said: list[str]) -> None:
    with progress("planning") as shown:
        assert messages.current.live is bar
        shown(Progress(stage="reading"))
        shown(Progress(stage="layer 1\x1b[2J", done=0.5, seconds_left=61.0))
        with shown.aside():
            assert messages.current.live is None
            bar.told.append("printed")
        assert messages.current.live is bar
    assert messages.current.live is None
    shown(Progress(stage="late"))
    with shown.aside():
        bar.told.append("printed")
    assert bar.told == [
        ("planning", {"total": None, "left": ""}),
        "start",
        {"description": "reading", "completed": 0.0, "total": None, "left": ""},
        {"description": "layer 1\\x1b[2J", "completed": 0.5, "total": 1.0, "left": "0:01:01 left"},
        "stop",
        "printed",
        "start",
        "stop",
        "printed",
    ]
    assert said == []


def test_nothing_is_drawn_before_the_start(bar: Bar) -> None:
    Shown("planning")
    assert messages.current.live is None
    assert bar.told == [("planning", {"total": None, "left": ""})]


def test_the_real_bar_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages.Messages, "draws", True)
    with progress("planning") as shown:
        shown(Progress(stage="[b]reading[/b]", done=0.25, seconds_left=5.0))
        (task,) = messages.current.live.tasks
        assert (task.description, task.percentage, task.fields["left"]) == (
            "[b]reading[/b]",
            25.0,
            "0:00:05 left",
        )
        bar = messages.current.live
        assert bar.live.transient
        assert bar.console.stderr and bar.console.is_terminal  # standard output is the result's
        assert not bar.live._redirect_stdout and not bar.live._redirect_stderr
        page = io.StringIO()
        Console(file=page, width=100).print(bar.get_renderable())
        assert "[b]reading[/b]" in page.getvalue() and "25%" in page.getvalue()
