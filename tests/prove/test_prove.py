"""`moe4 prove`: what it writes, what it does not measure twice, when it fails. `make demo` runs it whole."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import write_random_model, write_rounded_release
from publish.measured import TASK, evaluation, toolcheck
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import EvaluationError, Moe4Error, OutputError
from moe4.evaluate.result_files import EvaluationFile, ProbeFile, ToolcheckFile
from moe4.prove import options as prove_options
from moe4.prove.options import ProveOptions, _check_probe
from moe4.prove.run import Proved, _Identity, describe, failures, prove

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
        "skip": ("evaluation", "tools", "probe"),
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
        key: value for key, value in comparison.items() if key not in ("version", "run", "stamp")
    }
    assert comparison["run"]["command"][:4] == ["moe4", "prove", "SOURCE", "OUT"]
    assert str(folder) not in json.dumps(comparison["run"])
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
    with pytest.raises(EvaluationError, match="does not pass moe4 verify, so nothing is measured"):
        prove(options(folder, release=wrong), lambda _: None)
    assert not (wrong / "proof").exists()


def test_without_options_it_does_what_it_can(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task, no text, no vLLM: predictions of moe4's own text are compared, the rest is named."""
    monkeypatch.setattr(prove_options, "_has_vllm", lambda: False)
    (folder / "release" / "proof" / "evaluation.json").unlink(missing_ok=True)
    said: list[str] = []
    found = prove(options(folder, data=None, skip=()), said.append)
    assert found.comparison is not None and found.comparison.data == "hard-cases.jsonl"
    assert list(found.left_out) == ["evaluation", "tools", "probe"]
    assert "give tasks" in found.left_out["evaluation"]
    assert "pip install" in found.left_out["tools"]
    assert found.left_out["probe"] == found.left_out["tools"]
    assert any(line.startswith("evaluation: not measured: give tasks") for line in said)
    assert "evaluation: not measured: give tasks" in describe(found)
    assert found.as_dict()["left_out"] == found.left_out
    log = json.loads((folder / "release" / "proof" / "every_eval_ever.json").read_text())
    assert log["evaluation_results"][0]["score_details"]["score"] == found.comparison.kl.mean


def test_a_release_without_a_probe_is_told_how_to_get_one(folder: Path, tmp_path: Path) -> None:
    assert "moe4 probe OUT makes it" in str(_check_probe(options(folder, release=tmp_path)))


BAD = [
    ({"skip": ("speed",)}, 'skip="speed": expected one of'),
    ({"min_recovery": float("nan")}, "min_recovery=nan: expected a share"),
    ({"min_agreement": -1.0}, "min_agreement=-1: expected a share"),
    ({"limit": 0}, "limit=0: expected at least 1"),
    ({"tensor_parallel_size": 0}, "tensor_parallel_size=0: expected at least 1"),
    ({"repo": "no/good/name"}, 'repo="no/good/name": expected OWNER/NAME'),
    ({"license_name": "my own!"}, 'license_name="my own!": expected'),
    ({"data": Path("not-there.jsonl")}, "not-there.jsonl"),
    ({"requests": (Path("no-requests.jsonl"),), "skip": ("evaluation",)}, "no-requests.jsonl"),
    ({"skip": ("tools",), "tasks": ("gsm8k",), "source": Path("no-model")}, "no-model"),
]


@pytest.mark.parametrize(("changes", "complaint"), BAD, ids=[complaint for _, complaint in BAD])
def test_bad_options_are_found_before_old_results_are_reported(
    folder: Path, changes: dict[str, Any], complaint: str
) -> None:
    prove(options(folder), lambda _: None)  # there is a result now
    said: list[str] = []
    with pytest.raises(Moe4Error, match=re.escape(complaint)):
        prove(options(folder, **changes), said.append)
    assert said == []


def test_a_card_that_cannot_be_written_is_found_first(folder: Path) -> None:
    card = folder / "release" / "README.md"
    card.write_text("---\na: [\n---\n")
    with pytest.raises(OutputError, match="front matter is not YAML"):
        prove(options(folder), lambda _: None)
    assert card.read_text() == "---\na: [\n---\n"
    card.unlink()


def test_another_task_does_not_measure_the_text_again(folder: Path) -> None:
    """What a part does not read is not in its stamp."""
    before = _Identity(options(folder))
    after = _Identity(options(folder, tasks=("gsm8k",)))
    assert before.stamp("comparison") == after.stamp("comparison")
    assert before.stamp("evaluation") != after.stamp("evaluation")
    assert before.stamp("comparison") != _Identity(options(folder, quick=True)).stamp("comparison")


def test_gsm8k_in_a_folder(folder: Path, tmp_path: Path) -> None:
    """It needs no name of a task, and other questions are asked anew."""
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"question": "How much?", "answer": "#### 1"}\n')
    asked = options(folder, gsm8k_folder=tmp_path)
    assert asked.evaluation.names_a_task
    assert asked.command()[4:6] == ["--gsm8k-dir", tmp_path.name]
    before = _Identity(asked).stamp("evaluation")
    assert before == _Identity(asked).stamp("evaluation")
    (tmp_path / "test.jsonl").write_text('{"question": "How many?", "answer": "#### 1"}\n')
    assert before != _Identity(asked).stamp("evaluation")


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
    wrong = replace(proved(folder, None, None), probe=ProbeFile(passed=False, summary="wrong"))
    assert failures(wrong, options(folder)) == [
        "a server of the release does not give the answers that were stored with it"
    ]


def test_what_was_found_is_described(folder: Path) -> None:
    scores, answers = EvaluationFile(**evaluation()), ToolcheckFile(**toolcheck())
    text = describe(proved(folder, scores, answers))
    assert f"{TASK}: 99.00 % -> 98.80 %, recovery 99.80 %" in text
    assert "tool calls: decisions agree on" in text
    assert text.endswith(f"card: {folder / 'README.md'}")


def proved(folder: Path, scores: EvaluationFile | None, answers: ToolcheckFile | None) -> Proved:
    """What `prove` returns for these results."""
    return Proved(
        probe=None,
        source=folder,
        release=folder,
        quick=True,
        evaluation=scores,
        comparison=None,
        tools=answers,
        report=folder / "report.html",
        card=folder / "README.md",
    )
