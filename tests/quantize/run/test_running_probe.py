"""The expected answers that a run writes are those that `moe4 probe` makes of the finished release."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_tools import Forks, contents, interrupt_after, run_cli, run_quantize
from test_resume import RECIPE, flip_a_bit

from moe4.checkpoint.report_file import read_report
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
    assert verify(out, folder).problems == []
    assert report["probe"]["num_sequences"] == 64
    assert "probe     64 sequences with their expected answers" in str(read_report(out))
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


def remove_tokenizer(source: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()


def make_tokenizer_code(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_x.X", None]}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "tokenization_x.py").write_text("X = None\n")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove_tokenizer, "holds no tokenizer: expected .* found none; copy .*"),
        (make_tokenizer_code, "the tokenizer in .* is Python code .*--trust-remote-code runs it"),
    ],
)
def test_without_a_tokenizer_there_is_no_probe_and_a_warning(
    change: Callable[[Path], None],
    reason: str,
    small_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(small_source, source)
    change(source)
    why = rf".*{reason}.*"
    warning = rf"the release gets no {PROBE_NAME}: {why}; moe4 probe RELEASE can make it"
    code, text, _ = run_cli(["plan", str(source), "--method", "rtn", "--no-time"], monkeypatch, capfd)
    assert code == 0
    assert len(re.findall(rf"^warning   {warning}", text, re.MULTILINE)) == 1
    code, text, err = run_cli(["quantize", str(source), str(out), "--method", "rtn"], monkeypatch, capfd)
    assert code == 0
    assert len(re.findall(rf"^warning   {warning}", text, re.MULTILINE)) == 1
    assert len(re.findall(rf"^warning: {warning}", err, re.MULTILINE)) == 1
    assert not (out / PROBE_NAME).exists()
    report = json.loads((out / "moe4-report.json").read_text())
    assert re.match(why, report["probe"]["missing"])
    assert verify(out, source).problems == []


def test_a_probe_of_the_source_is_not_the_release_s(small_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(small_source, source)
    (source / PROBE_NAME).write_text("{}")
    run_quantize(source, tmp_path / "out", Recipe(method="rtn", group_size=32))
    assert json.loads((tmp_path / "out" / PROBE_NAME).read_text())["model_type"] == "kimi_k2"
    assert verify(tmp_path / "out", source).problems == []
