"""The harness' tasks: prompts are texts of training, filters find the result, data come from any folder."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.api.instance import Instance

from k2tiny import corpus
from moe4.errors import CheckpointError, EvaluationError
from moe4.evaluate.harness.backend import task_manager
from moe4.evaluate.harness.request import TASKS, EvaluationRequest
from moe4.evaluate.harness.tasks.reading import read_questions

DATA = Path(__file__).resolve().parents[3] / "reference" / "data"
GSM8K_TRAIN = [
    {"question": f"What is {n}+1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
    for n in range(8)
]
GSM8K_TEST = [{"question": "How much?", "answer": "It is much.\n#### 1,234"}]


@dataclass(frozen=True)
class Shot:
    """A row of a problems file, as the generator has it."""

    question: str
    answer: str
    situation: str


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    gsm8k = tmp_path_factory.mktemp("gsm8k")
    write_rows(gsm8k / "train.jsonl", GSM8K_TRAIN)
    write_rows(gsm8k / "test.jsonl", GSM8K_TEST)
    request = EvaluationRequest(model="m", tasks=tuple(TASKS), data_folder=str(DATA), gsm8k_folder=str(gsm8k))
    loaded: dict[str, Any] = task_manager(request).load(list(TASKS))["tasks"]
    for task in loaded.values():
        task.set_fewshot_seed(1234)
    return loaded


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def prompt(task: Any, doc: dict[str, str]) -> str:
    text: str = task.fewshot_context(doc, num_fewshot=task.config.num_fewshot)
    return text


def test_the_few_shot_prompt_is_a_training_text_cut_before_its_last_answer(
    tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator of training, given the files' problems, writes the prompt and the answer after it."""
    rng = random.Random(0)
    shots = iter(
        Shot(**row) for row in [*rows("fewshot-problems.jsonl")[:5], rows("heldout-problems.jsonl")[0]]
    )
    monkeypatch.setattr(corpus, "draw_training_problem", lambda _: next(shots))
    monkeypatch.setattr(rng, "randrange", lambda low, high: 6)
    document = corpus.text_document(rng)
    task = tasks["k2_tiny_problems"]
    doc = next(iter(task.test_docs()))
    assert prompt(task, doc) + f" {doc['answer']}[EOS]" == document.text


def test_the_zero_shot_prompt(tasks: dict[str, Any]) -> None:
    task = tasks["k2_tiny_problems_0shot"]
    doc = list(task.test_docs())[3]
    assert prompt(task, doc) == f"Question: {rows('heldout-problems.jsonl')[3]['question']}\nAnswer:"


def test_all_held_out_questions_are_asked_in_order(tasks: dict[str, Any]) -> None:
    asked = [doc["question"] for doc in tasks["k2_tiny_problems"].test_docs()]
    assert asked == [row["question"] for row in rows("heldout-problems.jsonl")]


def test_gsm8k_takes_five_examples_of_its_training_split(tasks: dict[str, Any]) -> None:
    text = prompt(tasks["gsm8k"], GSM8K_TEST[0])
    shots = text.split("\n\n")
    assert len(shots) == 6
    known = {f"Question: {row['question']}\nAnswer: {row['answer']}" for row in GSM8K_TRAIN}
    assert set(shots[:5]) <= known
    assert shots[5] == "Question: How much?\nAnswer:"


def test_gsm8k_is_the_harness_own_task_but_for_where_it_reads(tasks: dict[str, Any]) -> None:
    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    theirs, ours = yaml.safe_load(path.read_text()), tasks["gsm8k"].config
    for key in (
        "doc_to_text",
        "doc_to_target",
        "generation_kwargs",
        "filter_list",
        "metric_list",
        "num_fewshot",
    ):
        expected = theirs[key]
        if key == "generation_kwargs":
            assert {k: ours[key][k] for k in expected} == expected
        else:
            assert ours[key] == expected, key


def outcome(task: Any, response: str, doc: dict[str, str]) -> float:
    """Score a response as the harness does: filters first, then the metric."""
    instance = Instance(
        request_type="generate_until", doc=doc, arguments=("", {}), idx=0, metadata=(task.config.task, 0, 1)
    )
    instance.resps = [response]
    task._instances = [instance]
    task.apply_filters()
    filtered = instance.filtered_resps["strict-match"]
    value: float = task.process_results(doc, [filtered])["exact_match"]
    return value


@pytest.mark.parametrize("name", ["k2_tiny_problems", "k2_tiny_problems_0shot", "gsm8k"])
@pytest.mark.parametrize(
    ("response", "right"),
    [
        (" He has 3+4 = <<3+4=7>>7 apples.\n#### 7", 1.0),
        ("#### 7", 1.0),
        (" He has 7 apples.", 0.0),
        (" It is 7.\n### 7", 0.0),
        (" It is 70.\n#### 70", 0.0),
        (" It is 7.\n#### -7", 0.0),
        (" First.\n#### 7\n\n#### 8", 1.0),
        ("", 0.0),
    ],
)
def test_the_strict_result_is_what_follows_the_mark(
    tasks: dict[str, Any], name: str, response: str, right: float
) -> None:
    doc = {"question": "How many?", "answer": "Tom has 3+4 = <<3+4=7>>7.\n#### 7"}
    assert outcome(tasks[name], response, doc) == right


def test_gsm8k_ignores_commas_in_numbers(tasks: dict[str, Any]) -> None:
    assert outcome(tasks["gsm8k"], "#### 1234", GSM8K_TEST[0]) == 1.0
    assert outcome(tasks["gsm8k"], "#### 1,234", GSM8K_TEST[0]) == 1.0


def test_generation_ends_where_the_next_question_would_begin(tasks: dict[str, Any]) -> None:
    until = tasks["k2_tiny_problems"].config.generation_kwargs["until"]
    assert "\n\n" in until
    longest = max(len(row["answer"]) for row in rows("heldout-problems.jsonl"))
    assert longest < 2 * tasks["k2_tiny_problems"].config.generation_kwargs["max_gen_toks"]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    with pytest.raises(EvaluationError, match=r"test\.jsonl, line 2: expected .*question"):
        read_questions(path)
    path.write_text("")
    with pytest.raises(EvaluationError, match="is empty"):
        read_questions(path)
    path.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="is not UTF-8 text"):
        read_questions(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_questions(tmp_path / "none.jsonl")
