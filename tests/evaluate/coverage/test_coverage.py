"""`moe4 coverage`: counts against transformers' own router, the choice against all choices, the overlap."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import load_in_transformers, write_random_model
from transformers import AutoTokenizer
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import CalibrationError, EvaluationError
from moe4.evaluate.coverage.coverage import Coverage, CoverageOptions, choose, describe, measure, summarize
from moe4.evaluate.coverage.overlap import describe_overlap, find_overlap, read_questions

TEXTS = ["Tom has 12 apples.", "How many pears and plums?", "The way is 2000 km long.", "Hello."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coverage")
    write_random_model(folder / "model", num_hidden_layers=3, n_routed_experts=6, num_experts_per_tok=2)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "texts.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def coverage(folder: Path) -> Coverage:
    return measure(
        CoverageOptions(model=folder / "model", calibration=folder / "texts.jsonl"), lambda _: None
    )


def test_counts_are_those_of_transformers_router(folder: Path, coverage: Coverage) -> None:
    model = load_in_transformers(folder / "model", torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert coverage.layers == [1, 2]
    assert coverage.top_k == 2
    differing = 0
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        chosen: list[torch.Tensor] = []

        def record(_: object, arguments: tuple[torch.Tensor, ...], into: list[torch.Tensor] = chosen) -> None:
            into.append(arguments[1])

        handles = [layer.mlp.experts.register_forward_pre_hook(record) for layer in model.model.layers[1:]]
        with torch.no_grad():
            model(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        assert coverage.num_tokens[number] == len(ids)
        for place, experts in enumerate(chosen):
            expected = np.bincount(experts.flatten().numpy(), minlength=6)
            differing += int(np.abs(coverage.counts[number, place] - expected).sum())
    # In bfloat16 a token between two experts may go to either, as sums are rounded in another order.
    assert differing <= 0.02 * coverage.counts.sum()
    assert coverage.counts.sum() == 2 * 2 * sum(coverage.num_tokens)


def test_the_summary(coverage: Coverage) -> None:
    totals = coverage.counts.sum(0)
    result = summarize(coverage, cold_tokens=int(np.median(totals)))
    assert result.layers[0].tokens == totals[0].tolist()
    assert result.num_cold == int((totals < int(np.median(totals))).sum())
    coldest = result.cold[0]
    assert coldest.num_tokens == totals.min()
    assert totals[coverage.layers.index(coldest.layer), coldest.expert] == totals.min()
    best = result.documents_for_the_cold[0]
    assert best.where.rsplit(":", 1)[0].endswith("texts.jsonl")
    assert "add documents like these" in describe(result)
    assert "every expert has at least 0 tokens" in describe(summarize(coverage, 0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=2, max_size=7), st.data())
def test_the_choice_is_nearly_the_best_of_all(rows: list[list[int]], data: st.DataObject) -> None:
    counts = np.array(rows, np.int32).reshape(len(rows), 2, 2)
    num = data.draw(st.integers(1, len(rows)))

    def value(places: tuple[int, ...]) -> float:
        return float(np.log1p(counts[list(places)].sum(0)).sum())

    found = choose(counts, num)
    assert len(set(found)) == num
    assert found == sorted(found)
    best = max(map(value, itertools.combinations(range(len(rows)), num)))
    assert value(tuple(found)) >= (1 - 1 / np.e) * best - 1e-9


def test_a_document_for_the_cold_expert_is_chosen() -> None:
    counts = np.zeros((10, 1, 3), np.int32)
    counts[:, 0, 0] = 100
    counts[7, 0] = [1, 5, 0]
    counts[4, 0] = [1, 0, 5]
    assert choose(counts, 3)[1:] == [4, 7] or set(choose(counts, 3)) >= {4, 7}


def test_the_command_writes_its_choice(folder: Path, tmp_path: Path) -> None:
    out, questions = tmp_path / "chosen.jsonl", tmp_path / "questions.jsonl"
    questions.write_text('{"question": "How many pears and plums?"}\n{"question": "Something else?"}\n')
    arguments = ["coverage", str(folder / "model"), "--calibration", str(folder / "texts.jsonl"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--choose", "2", "-o", str(out)])
    assert result.exit_code == 0, result.output
    documents = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert len(documents) == 2
    assert set(documents) <= set(TEXTS)
    overlapping = CliRunner().invoke(app, [*arguments, "--evaluation", str(questions)])
    assert overlapping.exit_code == 1
    assert json.loads(overlapping.stdout)["overlap"]["num_whole"] == 1
    with pytest.raises(CalibrationError, match="go together"):
        CliRunner().invoke(app, [*arguments, "--choose", "2"], catch_exceptions=False)


def test_overlap_is_a_run_of_words() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    questions = [("q:1", f"What is {long}?"), ("q:2", "One, two!"), ("q:3", "two one")]
    found = find_overlap([("c:1", f"They say: {long.upper()} and so on")], questions)
    assert (found.num_overlapping, found.num_whole) == (2, 1)
    assert found.examples[0].calibration == "c:1"
    assert "share 13 words in a row" in describe_overlap(found)
    assert "none of 1 questions" in describe_overlap(find_overlap([("c", long)], [("q", "nothing of it")]))


def test_questions_of_all_forms(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"question": "a"}, {"text": "b"}, {"messages": [{"role": "user", "content": "c"}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [text for _, text in read_questions(path)] == ["a", "b", "c"]
    path.write_text('{"answer": 1}\n')
    with pytest.raises(EvaluationError, match=r"q\.jsonl:1: expected an object"):
        read_questions(path)
