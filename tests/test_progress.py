"""What whoever started an operation hears of it: the share that is done, and the time left at this pace."""

import pytest

from moe4.progress import Pace, Progress, ignore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("moe4.progress.time.monotonic", clock)
    return clock


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Progress(stage="reading"), "reading"),
        (Progress(stage="reading", done=0.0), "reading, 0 %"),
        (Progress(stage="reading", done=0.999), "reading, 99 %"),
        (Progress(stage="reading", done=1.0), "reading, 100 %"),
        (Progress(stage="reading", seconds_left=0.0), "reading, 0:00:00 left"),
        (Progress(stage="layer 3", done=0.25, seconds_left=3725.4), "layer 3, 25 %, 1:02:05 left"),
    ],
)
def test_a_step_in_words(step: Progress, text: str) -> None:
    assert str(step) == text


def test_the_time_left_follows_from_the_pace(clock: Clock) -> None:
    told: list[Progress] = []
    pace = Pace(told.append, "checking")
    pace.count(0, 8)  # nothing is done, so there is no pace
    clock.now += 6.0
    pace.count(2, 8)
    clock.now += 2.0
    pace.count(4, 8)
    pace.count(8, 8)
    assert told == [
        Progress(stage="checking", done=0.0),
        Progress(stage="checking", done=0.25, seconds_left=18.0),
        Progress(stage="checking", done=0.5, seconds_left=8.0),
        Progress(stage="checking", done=1.0, seconds_left=0.0),
    ]


def test_the_first_steps_say_nothing_of_the_pace(clock: Clock) -> None:
    """A minute of loading before the first of many steps is not an estimate of hours."""
    told: list[Progress] = []
    pace = Pace(told.append, "checking")
    clock.now += 60.0
    pace.count(1, 1000)
    pace.count(19, 1000)
    pace.count(20, 1000)
    assert [step.seconds_left for step in told] == [None, None, 60.0 * 980 / 20]


def test_nothing_to_do_has_no_pace(clock: Clock) -> None:
    told: list[Progress] = []
    Pace(told.append, "checking").count(0, 0)
    assert told == [Progress(stage="checking", done=0.0)]


def test_layers_are_numbered_from_0_and_the_last_is_named_when_all_are_done(clock: Clock) -> None:
    told: list[Progress] = []
    pace = Pace(told.append, "computing")
    pace.layer(0, 3)
    clock.now += 5.0
    pace.layer(1, 3)
    clock.now += 10.0
    pace.layer(3, 3)
    assert told == [
        Progress(stage="computing, layer 0", done=0.0, layer=0, of=3),
        Progress(stage="computing, layer 1", done=1 / 3, layer=1, of=3, seconds_left=10.0),
        Progress(stage="computing, layer 2", done=1.0, layer=2, of=3, seconds_left=0.0),
    ]


def test_a_step_may_be_ignored() -> None:
    Pace(ignore, "checking").count(1, 2)
