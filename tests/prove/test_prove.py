"""`moe4 prove`: what it writes, what it does not measure twice, when it fails. `make demo` runs it whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import write_random_model, write_rounded_release
from publish.measured import TASK, evaluation, toolcheck
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import EvaluationError
from moe4.evaluate.result_files import EvaluationFile, ToolcheckFile
from moe4.prove.run import Proved, ProveOptions, describe, failures, prove

SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, its release quantized by moe4 itself, and a text."""
    folder = tmp_path_factory.mktemp("prove")
    source = write_random_model(folder / "source", **SMALL)
    text = folder / "text.jsonl"
    text.write_text('{"text": "Tom has 12 apples and 30 pears."}\n{"text": "How many?"}\n')
    result = CliRunner().invoke(
        app, ["quantize", str(source), str(folder / "release"), "--method", "rtn", "--json"]
    )
    assert result.exit_code == 0, result.output
    return folder


def options(folder: Path, **changes: Any) -> ProveOptions:
    values: dict[str, Any] = {
        "source": folder / "source",
        "release": folder / "release",
        "data": folder / "text.jsonl",
        "skip": ("evaluation", "tools"),
        "cache_folder": folder / "cache",
    }
    return ProveOptions(**values | changes)


def test_results_are_written_and_not_measured_twice(folder: Path) -> None:
    said: list[str] = []
    first = prove(options(folder), said.append)
    release = folder / "release"
    comparison = json.loads((release / "proof" / "comparison.json").read_text())
    assert first.comparison is not None
    assert comparison["kl"] == first.comparison.kl.model_dump()
    assert first.as_dict()["comparison"] == {
        key: value for key, value in comparison.items() if key not in ("version", "stamp")
    }
    page = (release / "proof" / "report.html").read_text()
    assert f"{comparison['kl']['mean']:.5f} nats" in page
    card = (release / "README.md").read_text()
    assert f"{comparison['kl']['mean']:.5f} nats" in card
    said.clear()
    assert prove(options(folder), said.append).as_dict() == first.as_dict()
    assert any("measured already" in line for line in said)
    said.clear()
    (folder / "text.jsonl").write_text('{"text": "Another text."}\n')
    other = prove(options(folder), said.append).comparison
    assert other is not None and other.kl != first.comparison.kl
    assert not any("measured already" in line for line in said)
    assert "nats a token" in describe(first)


def test_a_release_that_is_not_sound_is_not_measured(folder: Path, tmp_path: Path) -> None:
    other = write_random_model(tmp_path / "other", seed=9, **SMALL)
    wrong = write_rounded_release(other, tmp_path / "release")
    with pytest.raises(EvaluationError, match="is not sound, so nothing is measured"):
        prove(options(folder, release=wrong), lambda _: None)
    assert not (wrong / "proof").exists()


def test_what_is_missing_is_said_first(folder: Path, tmp_path: Path) -> None:
    plain = write_random_model(tmp_path / "plain", **SMALL)
    (plain / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(EvaluationError, match="give --task"):
        prove(options(folder, source=plain, skip=("tools",)), lambda _: None)
    with pytest.raises(EvaluationError, match="give --data"):
        prove(options(folder, source=plain, data=None), lambda _: None)
    with pytest.raises(EvaluationError, match="--skip speed: expected one of"):
        prove(options(folder, skip=("speed",)), lambda _: None)


def test_only_what_is_shown_fails(folder: Path) -> None:
    """The bar is under the interval's upper end: no failure; above it: one."""

    def result(high: float, agreement_high: float) -> Proved:
        scores, answers = evaluation(), toolcheck()
        (task,) = scores["tasks"].values()
        task["change"]["recovery_interval"] = [0.9, high]
        answers["agreement"]["decision_agreement"]["interval"] = [0.5, agreement_high]
        return proved(folder, EvaluationFile(**scores), ToolcheckFile(**answers))

    assert failures(result(0.991, 0.98), options(folder)) == []
    assert failures(result(0.989, 0.98), options(folder)) == [f"recovery on {TASK} is below 99.0 %"]
    assert len(failures(result(0.9, 0.9), options(folder))) == 2
    assert failures(proved(folder, None, None), options(folder)) == []


def test_what_was_found_is_described(folder: Path) -> None:
    scores, answers = EvaluationFile(**evaluation()), ToolcheckFile(**toolcheck())
    text = describe(proved(folder, scores, answers))
    assert f"{TASK}: 99.00 % -> 98.80 %, recovery 99.80 %" in text
    assert "tool calls: decisions agree on" in text
    assert text.endswith(f"card: {folder / 'README.md'}")


def proved(folder: Path, scores: EvaluationFile | None, answers: ToolcheckFile | None) -> Proved:
    """What `prove` returns for these results."""
    return Proved(
        source=folder,
        release=folder,
        quick=True,
        evaluation=scores,
        comparison=None,
        tools=answers,
        report=folder / "report.html",
        card=folder / "README.md",
    )
