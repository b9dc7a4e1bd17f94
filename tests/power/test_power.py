"""`moe4 power`: planted faults beside the same faults on disk, no false alarm, nothing left behind."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import read_checkpoint, write_checkpoint, write_random_model
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import EvaluationError
from moe4.evaluate.comparison.compare import compare, load_text
from moe4.evaluate.result_files import POWER, Noticed, PowerFile, read_result
from moe4.forward.weights import open_model
from moe4.power.faults import (
    BothExperts,
    Damage,
    DroppedTensors,
    FaultyWeights,
    LostExpert,
    RoundedExperts,
    ScaledExperts,
    SwappedExperts,
    list_faults,
)
from moe4.power.measures import Limits, find_limits
from moe4.power.passes import RIGHT, Found, Models, Trials, Variant
from moe4.power.run import PowerOptions, describe, measure_power
from moe4.power.search import Ladder
from moe4.probe.form import PROBE_NAME, encode_probe, read_probe
from moe4.progress import Progress
from moe4.verify.checks import verify

SMALL = {"num_hidden_layers": 3, "n_routed_experts": 6, "num_experts_per_tok": 2}
NUM_ASKED = 6
TEXTS = ["Tom has 12 apples and 30 pears.", "How many?", "The way from Oslo to Rome is 2000 km long."]
EXPERT = "model.layers.1.mlp.experts.{}.{}_proj."
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


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


def power_options(folder: Path, **changes: Any) -> PowerOptions:
    values = {"source": folder / "source", "release": folder / "release", "data": folder / "text.jsonl"}
    return PowerOptions(**values | changes)


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


def run(folder: Path, models: Models, asked: list[list[int]], **variants: Variant) -> dict[str, Found]:
    corpus = load_text(power_options(folder).comparison, models.source_network.config)
    with tempfile.TemporaryDirectory() as work:
        trials = Trials(models, corpus, asked, Path(work), torch.device("cpu"))
        return trials.run(variants, lambda: None)


@pytest.fixture(scope="module")
def right(folder: Path, models: Models) -> dict[str, Found]:
    return run(folder, models, [], exact=Variant(is_exact=True))


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
    "scaled": (ScaledExperts(frozenset({(1, 2)}), 2.0), scaled),
    "swapped": (SwappedExperts((1, 0), (1, 3)), swapped),
    "lost": (LostExpert((1, 4)), lost),
    "without_bias": (DroppedTensors(frozenset({BIAS}), 1), without_bias),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fault_in_memory_is_that_fault_on_disk(
    folder: Path, models: Models, limits: Limits, tmp_path: Path, case: str
) -> None:
    """`compare` and `verify` read a release that holds the fault; both must say what the trial says."""
    fault, damage = CASES[case]
    found = run(folder, models, [], faulty=Variant(fault=fault))["faulty"]
    config, state = read_checkpoint(folder / "release")
    damage(state)
    faulty = write_checkpoint(tmp_path / "faulty", config, state)
    options = power_options(folder, release=faulty).comparison
    compared = compare(options, lambda _: None)
    assert float(found.tokens.kl.mean()) == pytest.approx(compared.kl.mean, rel=1e-6)
    assert found.tokens.top1_agreement == compared.top1_agreement
    for layer in compared.layers[1:]:
        errors = [found.expert_errors[layer.layer, expert] for expert in range(6)]
        assert errors == pytest.approx(layer.expert_errors, rel=1e-5)
    problems = verify(faulty, folder / "source").problems
    named = [text for text in problems if "does not resemble" in text or f"{BIAS} differs" in text]
    if case == "lost":
        named = named or [text for text in problems if "weight_scale holds zero" in text]
    assert limits.apply(found)["verify"].noticed == bool(named)


def test_a_release_without_a_fault_raises_no_alarm(
    folder: Path, models: Models, right: dict[str, Found], limits: Limits
) -> None:
    """Neither computed in another dtype, nor with a fault of no size, nor after the same bytes again."""
    none = ScaledExperts(frozenset({(1, 2)}), 1.0)
    again = run(folder, models, [], none=Variant(fault=none))
    for found in (*right.values(), *again.values()):
        assert not any(measure.noticed for measure in limits.apply(found).values())
    assert float(again["none"].tokens.kl.mean()) == float(right[RIGHT].tokens.kl.mean())


def test_a_variant_that_joins_late_gives_what_one_from_the_start_does(folder: Path, models: Models) -> None:
    class Early(LostExpert):
        first_layer = 0  # type: ignore[assignment]

    asked = [[5, 9, 2, 7], [5, 9], [3, 1, 2]]
    place = (2, 1)
    found = run(
        folder, models, asked, late=Variant(fault=LostExpert(place)), early=Variant(fault=Early(place))
    )
    assert found["late"].answers == found["early"].answers
    assert found["late"].expert_errors == found["early"].expert_errors
    assert torch.equal(found["late"].tokens.kl, found["early"].tokens.kl)
    assert found["late"].answers != found[RIGHT].answers


def test_what_faults_do_to_weights(models: Models) -> None:
    reader = BothExperts(models.source, models.release, models.network.experts)
    gate, up, down = reader.released((1, 2))
    found = ScaledExperts(frozenset({(1, 2)}), 1.5).expert((1, 2), reader)
    assert found is not None
    assert torch.equal(found[0], gate) and torch.equal(found[1], up) and torch.equal(found[2], 1.5 * down)
    for fault in (
        Damage(),
        LostExpert((1, 3)),
        SwappedExperts((1, 0), (1, 1)),
        RoundedExperts(frozenset({(2, 2)}), 32),
    ):
        assert fault.expert((1, 2), reader) is None
    rounded = RoundedExperts(frozenset({(1, 2)}), 32).expert((1, 2), reader)
    assert rounded is not None
    for weight, original in zip(rounded, reader.original((1, 2)), strict=True):
        groups = original.unflatten(-1, (-1, 32))
        step = groups.abs().amax(-1, keepdim=True) / 7.5
        # Half a step to the nearest code or past the last; bf16 moves a scale by 2^-8, times a code of 8.
        assert ((weight.unflatten(-1, (-1, 32)) - groups).abs() <= (0.5 + 8 * 2**-8) * step).all()
        assert not torch.equal(weight, original)
    weights = FaultyWeights(models.release, DroppedTensors(frozenset({BIAS}), 1))
    assert not weights.load(BIAS).any()
    assert weights.load("model.norm.weight").any()
    assert weights.num_changed == 1


@given(smallest=st.integers(0, 15), usual=st.integers(0, 14), num=st.integers(1, 15))
def test_bisection_finds_the_smallest_size_of_each_measure(smallest: int, usual: int, num: int) -> None:
    sizes = [float(size) for size in range(1, num + 1)]
    bars = {"kl": min(smallest, num), "top1": (7 * smallest) % (num + 1)}
    ladder, rounds = Ladder(sizes, sizes[usual % num]), 0
    while wanted := ladder.next_sizes():
        rounds += 1
        for size in wanted:
            found = {name: Noticed(value=size, limit=bar, noticed=size > bar) for name, bar in bars.items()}
            ladder.record(size, found)  # type: ignore[arg-type]
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
        assert result.exit_code != 0
        assert result.exception is not None and "\n" not in str(result.exception)


def test_the_experts_of_faults_are_typical(models: Models) -> None:
    tokens = {(layer, expert): 10 * expert for layer in (1, 2) for expert in range(6)}
    kinds = {kind.name: kind for kind in list_faults(models.network, 32, tokens)}
    assert kinds["lost_expert"].make(0) == LostExpert((2, 3))
    assert kinds["swapped_experts"].make(0) == SwappedExperts((2, 3), (2, 2))
    assert kinds["rounded_experts"].make(1) == RoundedExperts(frozenset({(2, 3)}), 32)
    assert kinds["rounded_experts"].sizes == (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 12.0)
    whole = kinds["rounded_experts"].make(12)
    assert isinstance(whole, RoundedExperts) and whole.places == frozenset(tokens)
    dropped = kinds["router_biases"].make(0)
    assert isinstance(dropped, DroppedTensors) and (len(dropped.names), dropped.layer) == (2, 1)
