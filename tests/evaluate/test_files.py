"""Result files: what is written is read, every wrong field is one line."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from publish.measured import TASK, comparison, evaluation, power, toolcheck

from moe4.errors import EvaluationError
from moe4.evaluate.result_files import (
    COMPARISON,
    EVALUATION,
    POWER,
    TOOLCHECK,
    ComparisonFile,
    EvaluationFile,
    PowerFile,
    ToolcheckFile,
    read_result,
    to_json,
)
from moe4.evaluate.toolcheck.client import Reply
from moe4.evaluate.toolcheck.summary import Outcome, compare_endpoints, summarize_endpoint

KINDS: dict[str, Any] = {
    EVALUATION: EvaluationFile,
    COMPARISON: ComparisonFile,
    TOOLCHECK: ToolcheckFile,
    POWER: PowerFile,
}
FILES = {EVALUATION: evaluation(), COMPARISON: comparison(), TOOLCHECK: toolcheck(), POWER: power()}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    content = {"version": 1, **FILES[name], "stamp": "x"}
    read = read_result(write(tmp_path, name, content), KINDS[name])
    assert read.model_dump(exclude_unset=True, by_alias=True) == json.loads(json.dumps(content))


def test_what_a_toolcheck_without_answers_gives_is_read(tmp_path: Path) -> None:
    side = to_json(summarize_endpoint("m", [], {"answered": 1.0}))
    agreement = to_json(compare_endpoints([], []))
    content = {**toolcheck(), "release": side, "baseline": side, "agreement": agreement}
    read_result(write(tmp_path, TOOLCHECK, content), ToolcheckFile)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(leaf for key in value for leaf in leaves(value[key], (*path, key)))]
    if isinstance(value, list):
        return [path, *(leaves(value[0], (*path, 0)) if value else [])]
    return [path]


PLACES = [(name, path) for name, content in FILES.items() for path in leaves(content) if path]


@pytest.mark.parametrize(("name", "path"), PLACES)
def test_a_field_of_another_kind_is_named(tmp_path: Path, name: str, path: tuple[Any, ...]) -> None:
    content = copy.deepcopy(FILES[name])
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    is_text = isinstance(place[path[-1]], str)
    place[path[-1]] = 7 if is_text else "seven"
    with pytest.raises(EvaluationError) as caught:
        read_result(write(tmp_path, name, content), KINDS[name])
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / name} is damaged: ")
    assert str(path[-1] if isinstance(path[-1], str) else path[-2]) in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (EVALUATION, {"task": {}}, "task is not a field"),
        (EVALUATION, {"version": 2}, "is of version 2, and this moe4 reads version 1"),
        (
            EVALUATION,
            {"tasks": {"t": {**evaluation()["tasks"][TASK], "metric": "f1"}}},
            "has no f1",
        ),
        (COMPARISON, {"layers": []}, "layers must have at least 1 entry"),
        (COMPARISON, {"top1_agreement": 1.5}, "top1_agreement must be at most 1, found 1.5"),
        (TOOLCHECK, {"agreement": {"num": 3}}, "agreement: decision_agreement is missing"),
        (TOOLCHECK, {"agreement": None}, "agreement must not be null"),
        (
            TOOLCHECK,
            {"baseline": {"model": "b", "num_requests": 1, "measures": {}}},
            "baseline.measures has no id_form, release.measures has",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_result(write(tmp_path, name, {**FILES[name], **changes}), KINDS[name])


def test_what_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / EVALUATION).write_text("{")
    with pytest.raises(EvaluationError, match="is damaged: not JSON"):
        read_result(tmp_path / EVALUATION, EvaluationFile)


def test_an_endpoints_result_is_written_as_it_was() -> None:
    """The fields of toolcheck.json and of --json, in their order; a text from a server is one line."""
    reply = Reply(error="busy\n\x1b[31m\ud800")
    outcome = Outcome(name="a", expected_call=True, whole=reply, findings=None)
    found = to_json(summarize_endpoint("m\ud800", [outcome], {"answered": 1.0}))
    assert list(found) == ["model", "num_requests", "measures", "num_calls", "faults"]
    assert list(found["measures"]["answered"]) == ["value", "interval", "num", "successes", "threshold", "ok"]
    assert found["measures"]["tool_call_f1"] is None
    assert found["faults"] == [{"request": 0, "name": "a", "notes": [r"not answered: busy\n\x1b[31m\ud800"]}]
    json.dumps(found, ensure_ascii=False).encode()
