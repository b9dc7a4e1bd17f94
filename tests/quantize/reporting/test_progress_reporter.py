"""What a run tells of its steps: where it is, what is done, and the time left, downloads included."""

from importlib import import_module

import pytest

from moe4.checkpoint.report_file import LayerRecord
from moe4.hub.meter import DownloadMeter
from moe4.progress import Progress
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.reporting.time_left import LayerTime, TimeLeft

LAYERS = [
    LayerTime(rest_seconds=4.0),
    LayerTime(rest_seconds=4.0, expert_seconds=1.0, num_experts=2),
    LayerTime(rest_seconds=2.0),  # embedding and head
]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    module = import_module("moe4.quantize.reporting.progress")
    monkeypatch.setattr(module, "TimeLeft", lambda layers, done=0: TimeLeft(layers, done, clock))
    return clock


def test_each_step_says_where_it_is_and_what_is_left(clock: Clock) -> None:
    told: list[Progress] = []
    reporter = ProgressReporter(told.append)
    reporter.begin(LAYERS, 2)
    clock.now += 4.0
    reporter.layer_done(0)
    clock.now += 4.0
    reporter.expert_done(1, 0)
    clock.now += 1.0
    reporter.expert_done(1, 1)
    reporter.layer_done(1)
    clock.now += 2.0
    reporter.rest_done()
    assert [(step.stage, step.layer, step.of) for step in told] == [
        ("reading", 0, 2),
        ("layer 0", 0, 2),
        ("layer 1 expert 0", 1, 2),
        ("layer 1 expert 1", 1, 2),
        ("layer 1", 1, 2),
        ("embedding, head", 1, 2),
    ]
    assert [step.done for step in told] == pytest.approx([0, 4 / 12, 5 / 12, 6 / 12, 10 / 12, 1])
    assert [step.seconds_left for step in told[:2]] == pytest.approx([12.0, 8.0])
    assert told[-1].seconds_left == 0


def test_a_run_that_goes_on_begins_where_it_was(clock: Clock) -> None:
    told: list[Progress] = []
    ProgressReporter(told.append).begin(LAYERS, 2, num_done=1)
    (step,) = told
    assert (step.layer, step.done, step.seconds_left) == (1, pytest.approx(4 / 12), pytest.approx(8.0))


def test_a_rank_that_begins_nothing_tells_nothing() -> None:
    told: list[Progress] = []
    reporter = ProgressReporter(told.append)
    reporter.expert_done(0, 0)
    reporter.layer_done(0)
    reporter.rest_done()
    assert told == []


def test_a_run_is_not_done_before_its_downloads(clock: Clock) -> None:
    told: list[Progress] = []
    reporter, meter = ProgressReporter(told.append), DownloadMeter(clock)
    reporter.begin(LAYERS, 2)
    reporter.follow(meter)
    meter.begin([1000, 1000])
    with meter.shard("a.safetensors"):
        clock.now += 10.0
        meter.received(100)  # 10 bytes a second, 1900 to come
    assert told[-1].stage == "reading; fetching a.safetensors, 10 B/s"
    assert told[-1].seconds_left == pytest.approx(190.0)
    assert told[-1].layer == 0
    meter.received(1900)
    reporter.layer_done(0)
    assert (told[-1].stage, told[-1].seconds_left) == ("layer 0", pytest.approx(8.0, rel=0.5))


def test_a_download_before_the_run_has_a_pace_of_its_own(clock: Clock) -> None:
    told: list[Progress] = []
    reporter = ProgressReporter(told.append)
    reporter.downloading(0, 400)
    clock.now += 3.0
    reporter.downloading(100, 400)
    assert told == [
        Progress(stage="downloading", done=0.0),
        Progress(stage="downloading", done=0.25, seconds_left=9.0),
    ]


def test_a_committed_layer_is_a_line(clock: Clock) -> None:
    said: list[str] = []
    reporter = ProgressReporter(say=said.append)
    reporter.begin(LAYERS, 2)
    clock.now += 4.0
    reporter.layer_done(0)
    reporter.layer_committed(LayerRecord(layer=0, experts=[], linears={}), 2, 3.96)
    assert said == ["layer 0 (1 of 2 done): nothing to quantize, 4.0 s, 0:00:08 left"]


def test_the_line_of_a_layer_counts_downloads_too(clock: Clock) -> None:
    said: list[str] = []
    reporter, meter = ProgressReporter(say=said.append), DownloadMeter(clock)
    reporter.begin(LAYERS, 2)
    reporter.follow(meter)
    meter.begin([1000, 1000])
    with meter.shard("a.safetensors"):
        clock.now += 4.0
        meter.received(40)  # 10 bytes a second, 1960 to come
        reporter.layer_done(0)
        reporter.layer_committed(LayerRecord(layer=0, experts=[], linears={}), 2, 4.0)
    assert said[-1].endswith("4.0 s, 0:03:16 left")


def test_a_first_layer_of_which_nothing_was_expected_is_no_pace(clock: Clock) -> None:
    left = TimeLeft([LayerTime(rest_seconds=0.0), LayerTime(rest_seconds=2.0)], 0, clock)
    clock.now += 5.0
    left.layer_done()
    assert left.seconds() == pytest.approx(2.0)
