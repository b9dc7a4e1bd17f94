"""What is said of the time left, on a clock that the test moves."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import random_state, reference_config, write_checkpoint

from moe4.checkpoint.report_file import LayerRecord
from moe4.checkpoint.source import Checkpoint
from moe4.model.architecture import Network
from moe4.model.outline import ExpertShape
from moe4.progress import Progress
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.release_plan import make_plan
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.reporting.time_left import LayerTime, TimeLeft
from moe4.quantize.run.expected_time import (
    EXPERT_SECONDS,
    REST_SECONDS,
    expected_times,
    expert_operations,
    measure_rate,
)
from moe4.quantize.transfer.ranks import Ranks
from moe4.recipe import Gptq, Recipe


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run_layer(left: TimeLeft, clock: Clock, rest: float, each: float, count: int, batch: int = 1) -> None:
    """A layer whose experts come `batch` at a time."""
    clock.now += rest
    for number in range(count):
        if number % batch == 0:
            clock.now += each * min(batch, count - number)
        left.expert_done()
    left.layer_done()


DENSE, MOE = (
    LayerTime(rest_seconds=3.0),
    LayerTime(rest_seconds=2.0, expert_seconds=0.03, num_experts=384),
)
K2 = [DENSE, *[MOE] * 60, LayerTime(rest_seconds=9.0)]


def whole(layers: list[LayerTime]) -> float:
    return sum(layer.rest_seconds + layer.expert_seconds * layer.num_experts for layer in layers)


def test_before_anything_is_measured_the_expectation_stands() -> None:
    clock = Clock()
    left = TimeLeft(K2, clock=clock)
    assert left.seconds() == pytest.approx(whole(K2))
    clock.now += 2.0
    assert left.seconds() == pytest.approx(whole(K2) - 2.0)
    clock.now += 50.0  # the first layer takes longer than expected: no less than the others are left
    assert left.seconds() == pytest.approx(whole(K2[1:]))


def test_a_dense_layer_does_not_stand_for_those_with_experts() -> None:
    """60 layers of 13.5 s after one of 3 s: a count of layers or steps would be wrong by a factor."""
    clock = Clock()
    left = TimeLeft(K2, clock=clock)
    run_layer(left, clock, 3.0, 0.0, 0)
    assert left.seconds() == pytest.approx(whole(K2[1:]))


def test_what_only_the_first_layer_takes_is_not_expected_of_the_others() -> None:
    """A small model: code is loaded for 20 s, a layer takes 2 s. After two layers the estimate is right."""
    layers = [
        LayerTime(rest_seconds=0.4),
        *[LayerTime(rest_seconds=0.4, expert_seconds=0.1, num_experts=16)] * 8,
    ]
    clock = Clock()
    left = TimeLeft(layers, clock=clock)
    run_layer(left, clock, 20.4, 0.0, 0)
    assert left.seconds() < 3 * whole(layers[1:])  # 51 times the rest's 0.4 s would be 176 s
    run_layer(left, clock, 0.4, 0.1, 16)
    assert left.seconds() == pytest.approx(whole(layers[2:]))


@pytest.mark.parametrize("batch", [1, 8])
def test_experts_that_take_twice_as_long_are_noticed_in_their_own_layer(batch: int) -> None:
    clock = Clock()
    left = TimeLeft(K2, clock=clock)
    run_layer(left, clock, 3.0, 0.0, 0)
    clock.now += 2.0
    for number in range(96):
        if number % batch == 0:
            clock.now += 0.06 * batch
        left.expert_done()
    truth = 0.06 * (384 - 96) + 59 * (2.0 + 0.06 * 384) + 9.0
    assert left.seconds() == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("batch", [8, 16])
def test_experts_that_come_together_are_no_pace(batch: int) -> None:
    """On a GPU the first batches end at the same moment: the estimate must not fall to nothing then."""
    clock = Clock()
    left = TimeLeft(K2, clock=clock)
    run_layer(left, clock, 3.0, 0.0, 0)
    clock.now += 2.0 + 0.03 * batch
    for number in range(batch):
        clock.now += 1e-4
        left.expert_done()
        truth = 0.03 * (384 - number - 1) + whole(K2[2:])
        assert left.seconds() == pytest.approx(truth, rel=0.1)


@given(rest=st.floats(0.2, 5.0), experts=st.floats(0.2, 5.0), done=st.integers(2, 61))
def test_after_a_layer_of_each_kind_the_rest_follows(rest: float, experts: float, done: int) -> None:
    """However wrong the expectation was, by a factor of its own for each kind of work."""
    clock = Clock()
    left = TimeLeft(K2, clock=clock)
    for layer in K2[:done]:
        run_layer(left, clock, rest * layer.rest_seconds, experts * layer.expert_seconds, layer.num_experts)
    truth = sum(
        rest * layer.rest_seconds + experts * layer.expert_seconds * layer.num_experts for layer in K2[done:]
    )
    assert left.seconds() == pytest.approx(truth, rel=0.05)


def test_a_resumed_run_counts_from_where_it_is() -> None:
    clock = Clock()
    left = TimeLeft(K2, 31, clock=clock)
    assert left.seconds() == pytest.approx(whole(K2[31:]))
    assert left.fraction() == pytest.approx(whole(K2[:31]) / whole(K2))
    for layer in K2[31:]:
        run_layer(left, clock, layer.rest_seconds, layer.expert_seconds, layer.num_experts)
    assert left.seconds() == 0.0
    assert left.fraction() == pytest.approx(1.0)


def behind(commit: float) -> list[LayerTime]:
    """A dense layer, two others that are committed `commit` seconds after their end, and the rest."""
    moe = LayerTime(rest_seconds=2.0, expert_seconds=0.01, num_experts=400, commit_seconds=commit)
    return [DENSE, moe, moe, LayerTime(rest_seconds=1.0, waits=True)]


@pytest.mark.parametrize("tail", [0.0, 9.0])
def test_what_is_committed_behind_the_last_layer_counts(tail: float) -> None:
    clock = Clock()
    left = TimeLeft(behind(tail), clock=clock)
    assert left.seconds() == pytest.approx(3.0 + 6.0 + 6.0 + tail + 1.0)
    run_layer(left, clock, 3.0, 0.0, 0)
    for _ in range(2):
        run_layer(left, clock, 2.0, 0.01, 400)
    assert left.seconds() == pytest.approx(tail + 1.0)
    clock.now += tail / 3
    assert left.seconds() == pytest.approx(tail * 2 / 3 + 1.0)
    clock.now += tail
    assert left.seconds() == pytest.approx(1.0)


def test_commits_that_take_longer_than_expected_are_noticed() -> None:
    clock = Clock()
    left = TimeLeft(behind(2.0), clock=clock)
    run_layer(left, clock, 3.0, 0.0, 0)
    run_layer(left, clock, 2.0, 0.01, 400)
    clock.now += 3.0
    left.layer_committed(1)  # three seconds after its end, for two
    assert left.seconds() == pytest.approx(3.0 + 3.0 + 1.0)  # half of the other, its commit, the rest


def test_the_line_of_a_layer_says_what_is_left() -> None:
    steps: list[Progress] = []
    lines: list[str] = []
    reporter = ProgressReporter(steps.append, lines.append)
    reporter.begin([DENSE, LayerTime(rest_seconds=3725.0)], 2)
    reporter.layer_done(0)
    reporter.layer_committed(LayerRecord(layer=0, shard="x", experts=[], linears={}), 2, 3.0)
    (text,) = lines
    assert text.startswith("layer 0 (1 of 2 done): nothing to quantize, 3.0 s, ")
    assert text.endswith(" left")
    assert [(step.stage, step.layer, step.of) for step in steps] == [("reading", 0, 2), ("layer 0", 0, 2)]
    assert steps[0].done == 0.0
    assert steps[1].seconds_left is not None


def test_an_experts_operations_grow_with_what_it_does() -> None:
    shape = ExpertShape(num_experts=2, hidden_size=512, width=256, prefix="x", module="mlp")
    recipe = Recipe()
    few, many = (expert_operations(shape, recipe, tokens) for tokens in (100, 10_000))
    # 9,900 tokens more: two multiply-adds a pair of columns halved by symmetry, and three products.
    assert many - few == pytest.approx(9_900 * (512**2 + 256**2 + 6 * 512 * 256))
    swept = expert_operations(shape, Recipe(gptq=Gptq(descent_sweeps=3)), 100)
    assert swept - few == pytest.approx(2 * (2 * 512**2 * 256 + 256**2 * 512))
    assert expert_operations(shape, Recipe(method="rtn"), 100) < few


def test_a_plan_counts_what_each_layer_is_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Twice the rate halves what operations take; what is copied takes what it takes."""
    config = reference_config()
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "s", config, random_state(config, seed=1)))
    network, recipe = Network(checkpoint.config, torch.bfloat16), Recipe(group_size=32)
    bench = Workbench(
        checkpoint=checkpoint,
        network=network,
        recipe=recipe,
        device=torch.device("cpu"),
        ranks=Ranks(),
        progress=ProgressReporter(),
    )
    plan = make_plan(checkpoint, network, recipe)
    found = []
    for rate in (1e9, 2e9):
        monkeypatch.setattr(
            import_module("moe4.quantize.run.expected_time"), "measure_rate", lambda *_, rate=rate: rate
        )
        found.append(expected_times(plan, bench, 1000))
    slow, fast = found
    assert [time.num_experts for time in slow] == [
        *(shape.num_experts if shape else 0 for shape in network.experts),
        0,
    ]
    for one, other in zip(slow[:-1], fast[:-1], strict=True):
        fixed = REST_SECONDS["cpu"]
        assert one.rest_seconds - fixed == pytest.approx(2 * (other.rest_seconds - fixed))
        if one.num_experts:
            fixed = EXPERT_SECONDS["cpu"]
            assert one.expert_seconds - fixed == pytest.approx(2 * (other.expert_seconds - fixed))
    assert slow[-1] == fast[-1]
    assert 1e8 < measure_rate(torch.device("cpu"), torch.float32, size=256) < 1e15
