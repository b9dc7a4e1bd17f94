"""Scores of one model or two on the same questions, as a table and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moe4.escape import visible
from moe4.evaluate.harness.samples import Sample, TaskSamples
from moe4.evaluate.result_files import (
    AnswerPair,
    EvaluationFile,
    JudgedAnswer,
    TaskChange,
    TaskResult,
    to_json,
)
from moe4.evaluate.statistics import LEVEL, PairedTest, paired_test
from moe4.schema import given
from moe4.strict_json import JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A model's mean on one task, from 0 to 1 for right answers, with its standard error."""

    metric: str
    mean: float
    stderr: float
    num_fewshot: int
    samples: tuple[Sample, ...]

    @property
    def values(self) -> list[float]:
        return [sample.value for sample in self.samples]

    def figures(self) -> dict[str, float | None]:
        """Return the mean under its metric's name; one question has no standard error."""
        return {self.metric: self.mean, "stderr": None if math.isnan(self.stderr) else self.stderr}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What changed from baseline to release, question by question.

    stderr: of the mean difference of paired answers, which share their questions' difficulty.
    """

    difference: float
    stderr: float
    test: PairedTest

    @property
    def gained(self) -> int:
        return self.test.gained

    @property
    def lost(self) -> int:
        return self.test.lost


def score(found: TaskSamples) -> Score:
    """Return the mean and its standard error, sqrt(p (1 - p) / (n - 1)) as the harness has it."""
    mean, stderr = mean_and_stderr([sample.value for sample in found.samples])
    return Score(
        metric=found.metric,
        mean=mean,
        stderr=stderr,
        num_fewshot=found.num_fewshot,
        samples=found.samples,
    )


def compare(before: Score, after: Score) -> Change:
    """Return the change between two models' answers to the same questions."""
    pairs = list(zip(before.samples, after.samples, strict=True))
    assert all(a.number == b.number and a.question == b.question for a, b in pairs)
    mean, stderr = mean_and_stderr([b.value - a.value for a, b in pairs])
    return Change(difference=mean, stderr=stderr, test=paired_test(before.values, after.values))


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard error of the mean; one value has no standard error: NaN."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreComparison:
    """The scores of a release by task, and of the baseline it is held against."""

    release: str
    scores: dict[str, Score]
    baseline: str | None = None
    baseline_scores: dict[str, Score] | None = None

    def change(self, task: str) -> Change | None:
        if self.baseline_scores is None:
            return None
        return compare(self.baseline_scores[task], self.scores[task])

    def to_file(self, most_flips: int | None = None, *, with_answers: bool = False) -> EvaluationFile:
        """Return what is written of it; with as many of each task's flips, with every answer.

        A flip is a question that one model answered better than the other.
        """
        answers = self.answers() if with_answers or most_flips is not None else {}
        flips = {task: [pair for pair in pairs if _is_flip(pair)] for task, pairs in answers.items()}
        return EvaluationFile(
            release=self.release,
            baseline=self.baseline,
            tasks={task: self._task(task) for task in self.scores},
            **given(
                samples=answers if with_answers else None,
                flips=None
                if most_flips is None
                else {task: found[:most_flips] for task, found in flips.items() if found},
            ),
        )

    def as_dict(self) -> JsonObject:
        """Return plain JSON types: everything but the answers."""
        return to_json(self.to_file())

    def answers(self) -> dict[str, list[AnswerPair]]:
        """Return every answer, by task."""
        found = {}
        for task, after in self.scores.items():
            alone = (None,) * len(after.samples)
            before = self.baseline_scores[task].samples if self.baseline_scores else alone
            found[task] = [
                AnswerPair(
                    number=new.number,
                    question=new.question,
                    target=new.target,
                    **given(baseline=old and JudgedAnswer(response=old.response, value=old.value)),
                    release=JudgedAnswer(response=new.response, value=new.value),
                )
                for old, new in zip(before, after.samples, strict=True)
            ]
        return found

    def _task(self, task: str) -> TaskResult:
        after, change = self.scores[task], self.change(task)
        before = self.baseline_scores[task].figures() if self.baseline_scores is not None else None
        return TaskResult(
            num_fewshot=after.num_fewshot,
            num_questions=len(after.samples),
            metric=after.metric,
            release=after.figures(),
            **given(baseline=before, change=change and task_change(change.test, change.stderr)),
        )

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return the table of before and after, in percent with standard errors, and what it means."""
        paired = self.baseline_scores is not None
        head = ["task", "shots", "questions"]
        head += ["baseline", "release", "change", "gained", "lost", "recovery"] if paired else ["score"]
        lines, verdicts = [head], []
        for task, after in self.scores.items():
            line = [task, str(after.num_fewshot), str(len(after.samples))]
            change = self.change(task)
            if change is not None and self.baseline_scores is not None:
                before = self.baseline_scores[task]
                line.append(percent(before.mean, before.stderr))
                line.append(percent(after.mean, after.stderr))
                line.append(percent(change.difference, change.stderr, sign=True))
                line += [str(change.gained), str(change.lost), recovery_text(change.test)]
                verdicts.append(f"{task}: {change.test.verdict()}")
            else:
                line.append(percent(after.mean, after.stderr))
            lines.append(line)
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        rows = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        return "\n".join(visible(row.rstrip()) for row in (*rows, *verdicts))


def recovery_text(test: PairedTest) -> str:
    """Return "99.47 % [98.80, 100.10]": the ratio of the means and its interval."""
    if test.recovery is None:
        return "-"
    text = f"{100 * test.recovery:.2f} %"
    interval = test.recovery_interval
    return text if interval is None else f"{text} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def percent(value: float, stderr: float, *, sign: bool = False) -> str:
    """Return "91.20 ± 0.90 %"; without a standard error where there is none."""
    text = f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"
    return f"{text} %" if math.isnan(stderr) else f"{text} ± {100 * stderr:.2f} %"


def task_change(test: PairedTest, stderr: float) -> TaskChange:
    """Return what a file says of a change; stderr: of the mean difference, NaN of one question."""
    recovery = test.recovery_interval
    return TaskChange(
        num_questions=test.num_questions,
        level=LEVEL,
        difference=test.difference,
        difference_interval=test.difference_interval.as_list(),
        recovery=test.recovery,
        recovery_interval=recovery.as_list() if recovery else None,
        gained=test.gained,
        lost=test.lost,
        mcnemar_p=test.p_value,
        within_noise=test.within_noise,
        verdict=test.verdict(),
        detectable_difference=test.detectable,
        questions_needed={f"{value:g}": num for value, num in test.questions_needed.items()},
        stderr=None if math.isnan(stderr) else stderr,
    )


def _is_flip(pair: AnswerPair) -> bool:
    return pair.baseline is not None and pair.baseline.value != pair.release.value
