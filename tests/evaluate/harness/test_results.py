"""Scores, their standard errors and the table, against statistics written another way."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean_stderr

from moe4.evaluate.harness.results import Score, ScoreComparison, compare, percent
from moe4.evaluate.harness.results import score as score_task
from moe4.evaluate.harness.samples import Sample, TaskSamples
from moe4.evaluate.result_files import JudgedAnswer


def samples(outcomes: list[bool]) -> list[Sample]:
    return [
        Sample(number=n, question=f"q{n}", target="7", response="#### 7" if ok else "#### 8", value=float(ok))
        for n, ok in enumerate(outcomes)
    ]


def score(answers: list[Sample]) -> Score:
    return score_task(TaskSamples(metric="exact_match", num_fewshot=5, samples=tuple(answers)))


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_the_standard_error_is_the_harness_own(outcomes: list[bool]) -> None:
    found = score(samples(outcomes))
    values = [float(ok) for ok in outcomes]
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.stderr == pytest.approx(mean_stderr(values))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_the_change_is_paired(pairs: list[tuple[bool, bool]]) -> None:
    change = compare(score(samples([a for a, _ in pairs])), score(samples([b for _, b in pairs])))
    differences = [int(b) - int(a) for a, b in pairs]
    assert change.difference == pytest.approx(statistics.fmean(differences))
    assert change.stderr == pytest.approx(statistics.stdev(differences) / math.sqrt(len(pairs)))
    assert change.gained - change.lost == sum(differences)
    assert change.gained == sum(b and not a for a, b in pairs)


def test_equal_answers_change_nothing() -> None:
    one = score(samples([True, False, True, True]))
    change = compare(one, one)
    assert (change.difference, change.stderr, change.gained, change.lost) == (0.0, 0.0, 0, 0)
    assert change.test.within_noise


BEFORE = samples([True] * 90 + [False] * 10)
AFTER = samples([True] * 88 + [False] * 11 + [True])


def comparison() -> ScoreComparison:
    return ScoreComparison(
        release="out",
        scores={"k2_tiny_problems": score(AFTER)},
        baseline="source",
        baseline_scores={"k2_tiny_problems": score(BEFORE)},
    )


def test_the_table_of_before_and_after() -> None:
    head, row, verdict = comparison().table().splitlines()
    assert head.split() == [
        "task", "shots", "questions", "baseline", "release", "change", "gained", "lost", "recovery"
    ]  # fmt: skip
    expected = (
        "k2_tiny_problems  5      100        90.00 ± 3.02 %  89.00 ± 3.14 %  -1.00 ± 1.74 %  1       2     "
    )
    assert row.startswith(expected + "98.89 % [9")
    assert verdict.startswith(
        "k2_tiny_problems: within noise (McNemar p = 1): 100 questions show differences"
    )


def test_the_table_of_one_model() -> None:
    alone = ScoreComparison(release="out", scores={"gsm8k": score(samples([True, False]))})
    assert alone.table() == (
        "task   shots  questions  score\ngsm8k  5      2          50.00 ± 50.00 %"  # sqrt(0.25 / 1)
    )
    assert "baseline" not in json.dumps(alone.as_dict()["tasks"])


def test_the_json() -> None:
    result = json.loads(json.dumps(comparison().as_dict(), allow_nan=False))
    assert (result["baseline"], result["release"]) == ("source", "out")
    task = result["tasks"]["k2_tiny_problems"]
    assert task["num_questions"] == 100
    assert task["baseline"]["exact_match"] == 0.9
    assert task["release"]["exact_match"] == 0.89
    assert task["change"]["difference"] == pytest.approx(-0.01)
    assert (task["change"]["gained"], task["change"]["lost"]) == (1, 2)
    assert task["change"]["recovery"] == pytest.approx(89 / 90)
    low, high = task["change"]["recovery_interval"]
    assert low < 89 / 90 < high
    assert task["change"]["within_noise"] is True
    assert set(task["change"]["questions_needed"]) == {"0.001", "0.005", "0.01"}
    answers = comparison().answers()["k2_tiny_problems"]
    assert answers[99].baseline == JudgedAnswer(response="#### 8", value=0.0)
    assert answers[99].release == JudgedAnswer(response="#### 7", value=1.0)


def test_one_question_has_no_standard_error() -> None:
    alone = ScoreComparison(release="out", scores={"gsm8k": score(samples([True]))})
    assert "100.00 %" in alone.table()
    assert alone.as_dict()["tasks"]["gsm8k"]["release"]["stderr"] is None
    assert percent(-0.5, math.nan, sign=True) == "-50.00 %"
