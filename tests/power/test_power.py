"""`moe4 power`: planted faults beside the same faults on disk, no false alarm, nothing left behind."""

import hashlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import read_checkpoint, write_checkpoint, write_random_model
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import INPUT_EXIT_CODE, EvaluationError, Moe4Error
from moe4.evaluate.comparison.compare import CompareOptions, compare, load_text
from moe4.evaluate.result_files import POWER, Noticed, PlantedFault, PowerFile, read_result
from moe4.forward.weights import open_model
from moe4.power.faults import (
    BothExperts,
    Damage,
    FaultyWeights,
    Lost,
    Place,
    Replaced,
    Rounded,
    Scaled,
    damage_experts,
    list_faults,
)
from moe4.power.measures import Limits, as_expected, find_limits
from moe4.power.passes import RIGHT, Found, Models, Trials
from moe4.power.run import describe, measure_power
from moe4.power.search import Ladder
from moe4.probe.form import PROBE_NAME, encode_probe, read_probe
from moe4.progress import Progress
from moe4.publish.words import figures
from moe4.verify.checks import verify

SMALL = {"num_hidden_layers": 3, "n_routed_experts": 6, "num_experts_per_tok": 2}
NUM_ASKED = 6
TEXTS = ["Tom has 12 apples and 30 pears.", "How many?", "The way from Oslo to Rome is 2000 km long."]
EXPERT = "model.layers.1.mlp.experts.{}.{}_proj."
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
ASKED = [[5, 9, 2, 7], [5, 9], [3, 1, 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, its release as moe4 makes it, and a text."""
    folder = tmp_path_factory.mktemp("power")
    source = write_random_model(folder / "source", **SMALL)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "text.jsonl").write_text(lines)
    command = ["quantize", str(source), str(folder / "release"), "--method", "rtn", "--group-size", "32"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    probe = folder / "release" / PROBE_NAME
    answers = read_probe(probe)
    probe.write_bytes(encode_probe(answers.model_copy(update={"sequences": answers.sequences[-NUM_ASKED:]})))
    return folder


def power_options(folder: Path, **changes: Any) -> CompareOptions:
    values = {"source": folder / "source", "release": folder / "release", "data": folder / "text.jsonl"}
    return CompareOptions(**values | changes)


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    source, source_network = open_model(folder / "source", torch.bfloat16)
    release, network = open_model(folder / "release", torch.bfloat16)
    _, exact = open_model(folder / "release", torch.float32)
    return Models(
        source=source,
        release=release,
        source_network=source_network,
        network=network,
        exact_network=exact,
    )


@pytest.fixture(scope="module")
def ran(folder: Path, models: Models) -> Iterator[tuple[Trials, dict[str, Found]]]:
    """Trials, and what they give of the release as it is."""
    corpus = load_text(power_options(folder), models.source_network.config)
    with tempfile.TemporaryDirectory() as work:
        trials = Trials(models, corpus, ASKED, Path(work), torch.device("cpu"))
        right = trials.run_right(lambda: None)
        kept = sorted(path.name for path in Path(work).iterdir())
        yield trials, right
        assert sorted(path.name for path in Path(work).iterdir()) == kept, "a round leaves nothing"


@pytest.fixture(scope="module")
def trials(ran: tuple[Trials, dict[str, Found]]) -> Trials:
    return ran[0]


@pytest.fixture(scope="module")
def right(ran: tuple[Trials, dict[str, Found]]) -> dict[str, Found]:
    return ran[1]


def run(trials: Trials, **damages: Damage) -> dict[str, Found]:
    return trials.run(damages, [], lambda: None)


@pytest.fixture(scope="module")
def limits(right: dict[str, Found]) -> Limits:
    return find_limits(right.values(), None)


def scaled(state: dict[str, torch.Tensor]) -> None:
    """Double an expert's scales, which bf16 holds exactly."""
    state[EXPERT.format(2, "down") + "weight_scale"] *= 2


def swapped(state: dict[str, torch.Tensor]) -> None:
    for part in ("gate", "up", "down"):
        for leaf in ("weight_packed", "weight_scale"):
            one, other = (EXPERT.format(number, part) + leaf for number in (0, 3))
            state[one], state[other] = state[other], state[one]


def lost(state: dict[str, torch.Tensor]) -> None:
    for part in ("gate", "up", "down"):
        state[EXPERT.format(4, part) + "weight_scale"].zero_()


def without_bias(state: dict[str, torch.Tensor]) -> None:
    state[BIAS].zero_()


CASES = {
    "scaled": (damage_experts({(1, 2): Scaled(2.0)}), scaled),
    "swapped": (damage_experts({(1, 0): Replaced((1, 3)), (1, 3): Replaced((1, 0))}), swapped),
    "lost": (damage_experts({(1, 4): Lost()}), lost),
    "without_bias": (Damage(dropped=frozenset({BIAS}), first_layer=1), without_bias),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fault_in_memory_is_that_fault_on_disk(
    folder: Path, trials: Trials, limits: Limits, tmp_path: Path, case: str
) -> None:
    """`compare` and `verify` read a release that holds the fault; both must say what the trial says."""
    fault, damage = CASES[case]
    found = run(trials, faulty=fault)["faulty"]
    config, state = read_checkpoint(folder / "release")
    damage(state)
    faulty = write_checkpoint(tmp_path / "faulty", config, state)
    options = power_options(folder, release=faulty)
    compared = compare(options, lambda _: None)
    assert float(found.tokens.kl.mean()) == pytest.approx(compared.kl.mean, rel=1e-6)
    assert found.tokens.top1_agreement == compared.top1_agreement
    for layer in compared.layers[1:]:
        errors = [found.weighed.expert_errors[layer.layer, expert] for expert in range(6)]
        assert errors == pytest.approx(layer.expert_errors, rel=1e-5)
    problems = verify(faulty, folder / "source").problems
    named = [text for text in problems if "does not resemble" in text or f"{BIAS} differs" in text]
    if case == "lost":
        named = named or [text for text in problems if "weight_scale holds zero" in text]
    assert limits.apply(found)["verify"].noticed == bool(named)


def test_a_release_without_a_fault_raises_no_alarm(
    trials: Trials, right: dict[str, Found], limits: Limits
) -> None:
    """Neither computed in another dtype, nor with a fault of no size, nor after the same bytes again."""
    again = run(trials, none=damage_experts({(1, 2): Scaled(1.0)}))
    for found in (*right.values(), *again.values()):
        assert not any(measure.noticed for measure in limits.apply(found).values())
    assert float(again["none"].tokens.kl.mean()) == float(right[RIGHT].tokens.kl.mean())


def test_passes_that_begin_late_or_together_give_what_each_gives_alone(
    trials: Trials, right: dict[str, Found]
) -> None:
    """Whichever pass is the first of its layer: others follow it, or begin earlier, or read other tensors."""
    lost = {(2, 1): Lost()}
    together = run(
        trials,
        scaled=damage_experts({(2, 3): Scaled(1.5), (2, 4): Scaled(1.5)}),
        late=damage_experts(lost),
        early=Damage(experts=lost),
        unbiased=Damage(dropped=frozenset({BIAS}), first_layer=1),
    )
    for name in ("late", "unbiased"):
        alone = run(trials, one=CASES["without_bias"][0] if name == "unbiased" else damage_experts(lost))
        assert together[name].answers == alone["one"].answers
        assert torch.equal(together[name].tokens.kl, alone["one"].tokens.kl)
    assert together["late"].answers == together["early"].answers != right[RIGHT].answers
    assert together["late"].weighed == together["early"].weighed
    assert torch.equal(together["late"].tokens.kl, together["early"].tokens.kl)
    assert together["unbiased"].num_changed == 1
    assert not torch.equal(together["scaled"].tokens.kl, together["late"].tokens.kl)


def test_what_is_weighed_alone_is_what_a_pass_weighs(trials: Trials) -> None:
    damage = damage_experts({(1, 1): Scaled(3.5), (2, 5): Rounded(32)})
    trials.run({}, [damage], lambda: None)
    alone = trials.weigh(damage)
    other = damage_experts({(1, 1): Scaled(3.25)})
    assert run(trials, one=damage)["one"].weighed == alone
    assert run(trials, one=other)["one"].weighed != alone


class Overflowing:
    """An expert whose down projection gives NaN."""

    def apply(self, place: Place, reader: BothExperts) -> list[torch.Tensor]:
        gate, up, down = reader.released(place)
        return [gate, up, down * torch.nan]


def test_a_fault_that_gives_nan_is_noticed_and_said(trials: Trials, limits: Limits, folder: Path) -> None:
    """And it does not disturb those that run beside it."""
    places = [(1, expert) for expert in range(6)]  # every token goes to one of them
    found = run(trials, broken=damage_experts(dict.fromkeys(places, Overflowing())), whole=CASES["lost"][0])
    expected = as_expected(read_probe(folder / "release" / PROBE_NAME))
    measures = replace(limits, expected=expected).apply(found["broken"])
    assert list(measures) == ["verify", "probe", "kl", "top1", "experts"]
    assert all(noticed.noticed and math.isnan(noticed.value) for noticed in measures.values())
    assert found["whole"].answers == run(trials, whole=CASES["lost"][0])["whole"].answers
    fault = PlantedFault(name="broken", title="experts broken", measures=measures)
    assert figures(fault, "kl").startswith("NaN, limit ")
    assert PlantedFault(**json.loads(json.dumps(fault.as_dict()))).measures["kl"].noticed


def test_what_faults_do_to_weights(models: Models) -> None:
    reader = BothExperts(models.source, models.release, models.network.experts)
    gate, up, down = reader.released((1, 2))
    found = Scaled(1.5).apply((1, 2), reader)
    assert torch.equal(found[0], gate) and torch.equal(found[1], up) and torch.equal(found[2], 1.5 * down)
    rounded = Rounded(32).apply((1, 2), reader)
    for weight, original in zip(rounded, reader.original((1, 2)), strict=True):
        groups = original.unflatten(-1, (-1, 32))
        step = groups.abs().amax(-1, keepdim=True) / 7.5
        # Half a step to the nearest code or past the last; bf16 moves a scale by 2^-8, times a code of 8.
        assert ((weight.unflatten(-1, (-1, 32)) - groups).abs() <= (0.5 + 8 * 2**-8) * step).all()
        assert not torch.equal(weight, original)
    weights = FaultyWeights(models.release, frozenset({BIAS}))
    assert not weights.load(BIAS).any()
    assert weights.load("model.norm.weight").any()
    assert weights.num_changed == 1


@given(smallest=st.integers(0, 15), usual=st.integers(0, 14), num=st.integers(1, 15))
def test_bisection_finds_the_smallest_size_of_each_measure(smallest: int, usual: int, num: int) -> None:
    sizes = [float(size) for size in range(1, num + 1)]
    bars = {"kl": min(smallest, num), "top1": (7 * smallest) % (num + 1)}
    ladder, rounds = Ladder(sizes, sizes[usual % num]), 0
    while any(wanted := (ladder.next_sizes(["kl"]), ladder.next_sizes(["top1"]))):
        rounds += 1
        found = {
            name: {size: Noticed(value=size, limit=bar, noticed=size > bar) for size in sizes}
            for name, bar in bars.items()
        }
        for size in wanted[0]:  # those sizes give every measure, the others only this one
            ladder.record(size, {name: found[name][size] for name in bars})  # type: ignore[misc]
        for size in wanted[1]:
            ladder.record(size, {"top1": found["top1"][size]})
    assert rounds <= Ladder.most_rounds(sizes)
    for name, bar in bars.items():
        expected = float(bar + 1) if bar < num else None
        assert ladder.smallest(name) == expected  # type: ignore[arg-type]


def test_a_size_that_goes_unnoticed_above_a_noticed_one_counts() -> None:
    ladder = Ladder([1.0, 2.0, 3.0], 1.0)
    for size, noticed in ((1.0, True), (2.0, False), (3.0, True)):
        ladder.record(size, {"kl": Noticed(value=size, limit=1.0, noticed=noticed)})
    assert ladder.smallest("kl") == 3.0


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != POWER
    }


def test_what_is_written_is_what_is_said(folder: Path) -> None:
    release, said, steps = folder / "release", list[str](), list[Progress]()
    before = digests(release)
    result = measure_power(power_options(folder), said.append, steps.append)
    assert digests(release) == before
    written = read_result(release / "proof" / POWER, PowerFile)
    assert written == result
    assert str(folder) not in (release / "proof" / POWER).read_text()
    faults = {fault.name: fault for fault in written.faults_planted}
    assert list(faults) == [
        *("scaled_expert", "scaled_experts", "rounded_experts", "swapped_experts", "lost_expert"),
        *("router_bias", "router_biases", "template"),
    ]
    assert faults["template"].measures["verify"].noticed
    assert not faults["template"].measures["kl"].noticed
    assert faults["router_bias"].measures["verify"].noticed
    assert faults["swapped_experts"].measures["experts"].noticed
    assert faults["scaled_expert"].measures["experts"].smallest is not None
    assert all(step.done is not None and 0 <= step.done <= 1 for step in steps)
    done = [step.done for step in steps if step.done is not None]
    assert done == sorted(done)
    text = describe(result)
    assert "two experts of a layer swapped" in text
    card = CliRunner().invoke(app, ["card", str(release), "--dry-run"])
    assert "### What this proof would have noticed" in card.stdout
    page = CliRunner().invoke(app, ["report", str(release), "--output", str(folder / "page.html")])
    assert page.exit_code == 0, page.output
    assert "two experts of a layer swapped" in (folder / "page.html").read_text()


def test_a_release_without_expected_answers_is_measured_without_them(folder: Path, tmp_path: Path) -> None:
    config, state = read_checkpoint(folder / "release")
    bare = write_checkpoint(tmp_path / "bare", config, state)
    result = measure_power(power_options(folder, release=bare), lambda _: None)
    assert "moe4 probe RELEASE makes it" in result.left_out["expected answers"]
    assert all("probe" not in fault.measures for fault in result.faults_planted)


def test_a_run_that_is_stopped_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    config, state = read_checkpoint(folder / "release")
    release = write_checkpoint(tmp_path / "release", config, state)
    work = tmp_path / "work"
    work.mkdir()

    def stop(_: Progress) -> None:
        assert list(work.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_power(power_options(folder, release=release, work=work), lambda _: None, stop)
    assert not list(work.iterdir())
    assert not (release / "proof").exists()


@pytest.mark.parametrize("command", ["power", "compare"])
def test_a_command_that_is_told_to_end_leaves_nothing(folder: Path, tmp_path: Path, command: str) -> None:
    config, state = read_checkpoint(folder / "release")
    release = write_checkpoint(tmp_path / "release", config, state)
    text = tmp_path / "long.jsonl"  # so that it takes seconds, and the signal comes before its end
    text.write_text(json.dumps({"text": "The way from Oslo to Rome is long. " * 200}) + "\n")
    text.write_text(text.read_text() * 40)
    words = [command, str(folder / "source"), str(release), "--data", str(text)]
    process = subprocess.Popen(
        [sys.executable, "-m", "moe4", *words, "--work", str(tmp_path), "--max-tokens", "512"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(tmp_path.glob(f"moe4-{command}-*/*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.terminate()
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGTERM, said
    assert "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == [text, release]


def test_a_source_is_no_release(folder: Path) -> None:
    with pytest.raises(EvaluationError, match="source is not a W4A16 release; name the folder of one"):
        measure_power(power_options(folder, release=folder / "source"), lambda _: None)


def test_the_command_says_what_is_wrong_in_one_line(folder: Path, tmp_path: Path) -> None:
    for arguments in (
        [str(folder / "source"), str(tmp_path / "none")],
        [str(folder / "source"), str(folder / "source")],
        [str(folder / "source"), str(folder / "release"), "--data", str(tmp_path / "none.jsonl")],
        [str(folder / "source"), str(folder / "release"), "--device", "abacus"],
        [str(folder / "source"), str(folder / "release"), "--work", str(tmp_path / "none")],
    ):
        result = CliRunner().invoke(app, ["power", *arguments])
        assert isinstance(result.exception, Moe4Error)
        assert result.exception.exit_code == INPUT_EXIT_CODE
        assert "\n" not in str(result.exception)


def test_the_experts_of_faults_are_typical(models: Models) -> None:
    tokens = {(layer, expert): 10 * expert for layer in (1, 2) for expert in range(6)}
    kinds = {kind.name: kind for kind in list_faults(models.network, 32, tokens)}
    one, other = (2, 3), (2, 2)
    assert kinds["lost_expert"].make(0) == damage_experts({one: Lost()})
    swapped = {one: Replaced(other), other: Replaced(one)}
    assert kinds["swapped_experts"].make(0) == damage_experts(swapped)
    assert kinds["rounded_experts"].make(1) == damage_experts({one: Rounded(32)})
    assert kinds["rounded_experts"].sizes == (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 12.0)
    assert set(kinds["rounded_experts"].make(12).experts) == set(tokens)
    dropped = kinds["router_biases"].make(0)
    assert (len(dropped.dropped), dropped.first_layer) == (2, 1)
