"""Answers survive kill -9, a torn line and a repeat; any of the harness' tasks can be evaluated."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.dummy import DummyLM

from moe4.errors import EvaluationError
from moe4.evaluate.harness import backend as harness
from moe4.evaluate.harness import cached_model
from moe4.evaluate.harness.cache import AnswerCache, answer_key, folder_identity
from moe4.evaluate.harness.cached_model import CachedModel
from moe4.evaluate.harness.request import EvaluationRequest

DIES_IN_THE_THIRD_PORTION = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from moe4.evaluate.harness import cached_model
from moe4.evaluate.harness.cache import AnswerCache

class Model:
    portions = 0
    def generate_until(self, requests, disable_tqdm):
        self.portions += 1
        if self.portions == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return [request.args[0].upper() for request in requests]

cached_model.PORTION = 2
requests = [SimpleNamespace(args=(f"prompt {n}", {"until": []})) for n in range(10)]
cached_model.CachedModel(Model, AnswerCache(Path(sys.argv[1]), {"model": "m"})).generate_until(requests)
"""


@dataclass(frozen=True)
class Request:
    """The part of the harness' Instance that a model reads."""

    args: tuple[Any, ...]


class Model:
    """Answers in capitals, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        self.asked += [request.args[0] for request in requests]
        return [request.args[0].upper() for request in requests]


def requests(num: int, **decoding: Any) -> list[Request]:
    return [Request((f"prompt {n}", {"until": [], **decoding})) for n in range(num)]


def test_a_killed_evaluation_resumes(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", DIES_IN_THE_THIRD_PORTION, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    cache, model = AnswerCache(tmp_path, {"model": "m"}), Model()
    assert len(cache) == 4
    answers = CachedModel(lambda: model, cache).generate_until(requests(10))
    assert answers == [f"PROMPT {n}" for n in range(10)]
    assert model.asked == [f"prompt {n}" for n in range(4, 10)]


def test_a_complete_cache_starts_no_model(tmp_path: Path) -> None:
    CachedModel(Model, AnswerCache(tmp_path, {})).generate_until(requests(3))

    def start() -> Model:
        raise AssertionError("started")

    assert CachedModel(start, AnswerCache(tmp_path, {})).generate_until(requests(3)) == [
        "PROMPT 0", "PROMPT 1", "PROMPT 2"
    ]  # fmt: skip


def test_a_torn_line_costs_one_answer(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {})
    CachedModel(Model, cache).generate_until(requests(3))
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:-20])
    torn = AnswerCache(tmp_path, {})
    assert len(torn) == 2
    torn.add([("after", "the tear")])
    assert len(AnswerCache(tmp_path, {})) == 3


def test_other_models_and_other_decoding_have_other_answers(tmp_path: Path) -> None:
    CachedModel(Model, AnswerCache(tmp_path, {"model": "a"})).generate_until(requests(2))
    for identity, asked in (
        ({"model": "b"}, requests(2)),
        ({"model": "a"}, requests(2, temperature=0.7)),
    ):
        model = Model()
        CachedModel(lambda model=model: model, AnswerCache(tmp_path, identity)).generate_until(asked)  # type: ignore[misc]
        assert len(model.asked) == 2


def test_repeats_of_a_question_are_answered_one_by_one(tmp_path: Path) -> None:
    model, cache = Model(), AnswerCache(tmp_path, {})
    CachedModel(lambda: model, cache).generate_until([requests(1)[0]] * 3)
    assert len(model.asked) == len(cache) == 3
    assert answer_key("generate_until", ("p", {}), 0) != answer_key("generate_until", ("p", {}), 1)


def test_the_identity_is_that_of_the_files_content(tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    model.mkdir()
    (model / "model.safetensors").write_text("aaaa")
    (model / "README.md").write_text("not the model")
    first = folder_identity(model, cache)
    (model / "README.md").write_text("changed")
    assert folder_identity(model, cache) == first
    (model / "model.safetensors").write_text("aaab")
    changed = folder_identity(model, cache)
    assert changed != first
    (cache / "hashes.json").unlink()
    assert folder_identity(model, cache) == changed


CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{c}}}}"
doc_to_target: "{{{{a}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a group of two tasks that rank given answers."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(harness, "start_model", lambda backend, arguments: DummyLM())
    monkeypatch.setattr(harness, "open_cache", lambda *_: None)
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, num in (("colours", 3), ("shapes", 2)):
        rows = "".join(f'{{"q": "{name} {n}?", "c": ["red", "blue"], "a": 0}}\n' for n in range(num))
        (tmp_path / f"{name}.jsonl").write_text(rows)
        (folder / f"{name}.yaml").write_text(CHOICES.format(name=name, data=tmp_path / f"{name}.jsonl"))
    (folder / "things.yaml").write_text("group: things\ntask: [colours, shapes]\n")
    return folder


def test_a_group_of_tasks_that_rank_answers(own_tasks: Path) -> None:
    request = EvaluationRequest(
        model="m",
        tasks=("things", "shapes"),
        include_path=str(own_tasks),
        base_url="http://127.0.0.1:9/v1",
    )
    found = harness.evaluate(request)
    assert [sample.question for sample in found["things"].samples] == [
        "colours 0?", "colours 1?", "colours 2?", "shapes 0?", "shapes 1?"
    ]  # fmt: skip
    assert [sample.number for sample in found["things"].samples] == [0, 1, 2, 3, 4]
    assert found["things"].metric == "acc"
    assert {sample.value for sample in found["things"].samples} <= {0.0, 1.0}
    assert len(found["shapes"].samples) == 2


def test_a_task_without_a_mean_is_refused(own_tasks: Path) -> None:
    path = own_tasks / "shapes.yaml"
    path.write_text(path.read_text() + "    aggregation: median\n")
    request = EvaluationRequest(
        model="m", tasks=("shapes",), include_path=str(own_tasks), base_url="http://127.0.0.1:9/v1"
    )
    with pytest.raises(EvaluationError, match="shapes has no metric"):
        harness.evaluate(request)


def test_the_portion_is_larger_than_vllms_batch() -> None:
    assert cached_model.PORTION >= 256
