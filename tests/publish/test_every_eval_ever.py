"""The logs for other tools: valid by their own schema, with the measured figures in them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from measured import TASK, write_measured_release

from moe4.publish.card import CardNames
from moe4.publish.every_eval_ever import BASELINE_LOG, RELEASE_LOG, evaluation_logs
from moe4.publish.proof import read_proof

NAMES = CardNames(repo="me/a-release", base_model="them/source")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_measured_release(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def logs(release: Path) -> dict[str, Any]:
    return json.loads(json.dumps(evaluation_logs(read_proof(release), NAMES)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("names", [NAMES, CardNames()])
def test_the_coalitions_schema_finds_nothing(release: Path, names: CardNames) -> None:
    schema = json.loads(Path(__file__).with_name("every_eval_ever").joinpath("eval.schema.json").read_text())
    for name, log in evaluation_logs(read_proof(release), names).items():
        assert [error.message for error in Draft7Validator(schema).iter_errors(log)] == [], name
    log["evaluation_results"][0]["score_details"]["score"] = "high"
    assert list(Draft7Validator(schema).iter_errors(log))


def test_figures_are_the_measured_ones(logs: dict[str, Any]) -> None:
    release, baseline = logs[RELEASE_LOG], logs[BASELINE_LOG]
    scores = {log["model_info"]["id"]: log["evaluation_results"][0] for log in (release, baseline)}
    assert scores["me/a-release"]["score_details"]["score"] == pytest.approx(0.988)
    assert scores["them/source"]["score_details"]["score"] == pytest.approx(0.99)
    assert scores["me/a-release"]["evaluation_name"] == TASK
    found = scores["me/a-release"]["score_details"]
    assert found["uncertainty"]["num_samples"] == 1000
    assert found["uncertainty"]["standard_error"]["value"] == pytest.approx(math.sqrt(0.988 * 0.012 / 999))
    details = found["details"]
    assert (details["gained"], details["lost"]) == ("1", "3")
    assert float(details["recovery"]) == pytest.approx(988 / 990, abs=1e-6)
    assert float(details["smallest_detectable_loss"]) == pytest.approx(0.0078, abs=1e-4)
    assert release["evaluation_id"] == "moe4/me/a-release/1795774830"  # 2026-11-27T10:20:30Z
    assert release["model_info"]["inference_engine"] == {"name": "vllm", "version": "0.32.0"}
    ids = {result["evaluation_result_id"]: result for result in release["evaluation_results"]}
    assert ids["predictions/kl_divergence"]["score_details"]["score"] == 0.00123
    assert ids["tools/tool_call_f1"]["score_details"]["score"] == 0.9
    assert "tools/id_form" not in ids
    assert len(ids) == len(release["evaluation_results"])


def test_scores_that_are_no_shares_have_no_bounds(release: Path) -> None:
    path = release / "proof" / "evaluation.json"
    before = path.read_text()
    data = json.loads(before)
    data["tasks"][TASK]["release"]["exact_match"] = 73.4
    path.write_text(json.dumps(data))
    config = evaluation_logs(read_proof(release), NAMES)[RELEASE_LOG]["evaluation_results"][0][
        "metric_config"
    ]
    path.write_text(before)
    assert (config["min_score"], config["max_score"]) == ("-Infinity", "Infinity")


def test_nothing_measured_is_no_log(release: Path, tmp_path: Path) -> None:
    assert evaluation_logs(read_proof(release, tmp_path), NAMES) == {}
