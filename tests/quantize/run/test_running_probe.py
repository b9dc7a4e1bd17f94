"""The expected answers that a run writes are those that `moe4 probe` makes of the finished release."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from release_tools import Forks, contents, interrupt_after, run_quantize
from test_resume import RECIPE, flip_a_bit

from moe4.checkpoint.report_file import report_of
from moe4.probe.form import PROBE_NAME, Expectation, read_probe
from moe4.probe.make import ProbeOptions, make_probe
from moe4.recipe import ALL_TARGETS, Recipe
from moe4.verify.checks import verify

CLOSE = 1e-5  # the same sums in the same order, in bfloat16 too; only reading the weights differs


def distance(one: Expectation, other: Expectation) -> float:
    """Return the largest difference of log-probabilities; ids that tie may stand in another order."""
    found = dict(zip(other.ids, other.logprobs, strict=True))
    ours = dict(zip(one.ids, one.logprobs, strict=True))
    shared = max((abs(ours[token] - found[token]) for token in ours.keys() & found.keys()), default=math.inf)
    sorted_apart = max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))
    return max(shared, sorted_apart)


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("source", Recipe(gptq=RECIPE.gptq, calibration=RECIPE.calibration)),
        ("fp8_source", Recipe(gptq=RECIPE.gptq, calibration=RECIPE.calibration)),
        ("fp8_source", Recipe(gptq=RECIPE.gptq, calibration=RECIPE.calibration, targets=ALL_TARGETS)),
        ("source", Recipe(method="rtn", targets=ALL_TARGETS)),
        ("fp8_source", Recipe(method="rtn")),
    ],
    ids=["gptq", "gptq from FP8", "gptq on all from FP8", "rtn on all", "rtn from FP8"],
)
def test_what_a_run_writes_is_what_the_release_gives(
    kind: str, recipe: Recipe, calibration: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    out = tmp_path / "out"
    report: Any = run_quantize(folder, out, recipe, calibration if recipe.method == "gptq" else None)
    assert verify(out, folder)["problems"] == []
    assert report["probe"]["num_sequences"] == 64
    assert "probe     64 sequences with their expected answers" in str(report_of(report, "report"))
    written = read_probe(out / PROBE_NAME, 2560)
    made = make_probe(
        ProbeOptions(release=out, source=folder, output=tmp_path / "probe.json"), lambda _: None
    )
    assert written.experts == made.experts
    assert (written.remarks, written.model_type) == (made.remarks, made.model_type)
    for ours, theirs in zip(written.sequences, made.sequences, strict=True):
        assert (ours.kind, ours.tokens) == (theirs.kind, theirs.tokens)
        assert ours.source is not None
        assert theirs.source is not None
        assert ours.bf16 is not None
        assert theirs.bf16 is not None
        assert distance(ours.released, theirs.released) < CLOSE
        assert distance(ours.source, theirs.source) < CLOSE
        assert distance(ours.bf16, theirs.bf16) < CLOSE
    assert any(sequence.released != sequence.source for sequence in written.sequences)


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(method="rtn", group_size=32)], ids=["gptq", "rtn"])
@pytest.mark.parametrize("num_done", [1, 2, 3])
def test_damaged_states_are_made_again(
    num_done: int,
    recipe: Recipe,
    small_source: Path,
    calibration: Path,
    tmp_path: Path,
    forks: Forks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tmp_path / "whole"
    run_quantize(small_source, whole, recipe, calibration)
    out = interrupt_after(num_done, small_source, calibration, tmp_path / "out", recipe, monkeypatch)
    state = out / ".moe4" / f"probe-{num_done:05d}.bin"
    assert state.is_file() == (num_done < 3)
    if state.is_file():
        flip_a_bit(state)
    run_quantize(small_source, out, recipe, calibration, resume=True)
    assert contents(out) == contents(whole)


def test_without_a_tokenizer_there_is_no_probe(
    small_source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(small_source, source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    report: Any = run_quantize(source, tmp_path / "out", Recipe(method="rtn", group_size=32))
    assert "no probe: the tokenizer in " in capfd.readouterr().err
    assert not (tmp_path / "out" / PROBE_NAME).exists()
    assert report["probe"]["missing"].startswith("the tokenizer in ")
    assert "\nno probe  the tokenizer in " in str(report_of(report, "report"))
    assert verify(tmp_path / "out", source)["problems"] == []


def test_a_probe_of_the_source_is_not_the_release_s(small_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(small_source, source)
    (source / PROBE_NAME).write_text("{}")
    run_quantize(source, tmp_path / "out", Recipe(method="rtn", group_size=32))
    assert json.loads((tmp_path / "out" / PROBE_NAME).read_text())["model_type"] == "kimi_k2"
    assert verify(tmp_path / "out", source)["problems"] == []
