"""`moe4 eval` without a task: it measures what it can and names the rest."""

import json
from pathlib import Path

import pytest
from model_fixtures import write_random_model, write_rounded_release
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import EvaluationError, OutputError
from moe4.evaluate.harness.evaluation import EvaluationOptions, plan_requests
from moe4.evaluate.without_tasks import measure_without_tasks

SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}


def test_two_folders_are_compared_and_the_rest_is_named(tmp_path: Path) -> None:
    source = write_random_model(tmp_path / "source", **SMALL)
    release = write_rounded_release(source, tmp_path / "release")
    path = tmp_path / "found.json"
    options = ["eval", str(release), "--against", str(source), "--limit", "2", "--output", str(path)]
    result = CliRunner().invoke(app, [*options, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["comparison"]["data"] == "hard-cases.jsonl"
    assert found["comparison"]["num_sequences"] == 2
    assert found["comparison"]["kl"]["mean"] > 0
    assert sorted(found["left_out"]) == ["accuracy", "tools"]
    assert json.loads(path.read_text()) == found
    text = CliRunner().invoke(app, options).stdout
    assert "accuracy: not measured: give --task: k2_tiny_problems" in text
    assert "nats a token" in text


def test_what_leaves_nothing_to_measure_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r'give tasks: .*; or give against="SOURCE"'):
        measure_without_tasks(EvaluationOptions(model=str(tmp_path)), lambda _: None)
    for changes, complaint in (
        ({"tokenizer": tmp_path / "none", "base_url": "http://x"}, 'tokenizer=.*none" is not a folder'),
        ({"tokenizer": tmp_path}, "tokenizer goes with base_url"),
        ({"revision": "1"}, "revision goes with base_url"),
        ({"data_folder": tmp_path}, r"has no heldout-problems\.jsonl"),
    ):
        with pytest.raises(EvaluationError, match=complaint):
            plan_requests(EvaluationOptions(**{"model": "m", "tasks": ("gsm8k",), **changes}))
    options = EvaluationOptions(model="m", against="s", output=tmp_path / "no" / "found.json")
    with pytest.raises(OutputError, match="there is no folder"):
        measure_without_tasks(options, lambda _: None)
