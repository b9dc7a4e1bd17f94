"""From what the harness logs to one value a question."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from moe4.errors import EvaluationError
from moe4.strict_json import JsonObject

STRICT = "strict-match"  # where a task has several filters, the one that counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question: what the model wrote, and what it is worth: 1 right, 0 wrong, or a score between."""

    number: int
    question: str
    target: str
    response: str
    value: float

    @property
    def correct(self) -> bool:
        return self.value == 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSamples:
    """A task's samples, the metric they are measured by and the examples before each question."""

    metric: str
    num_fewshot: int
    samples: tuple[Sample, ...]


def read_task(name: str, leaves: list[str], results: JsonObject) -> TaskSamples:
    """Return the answers to a task, or to all tasks of a group one after another.

    The metric is the task's first whose result is the mean over questions and of which more is better.
    Raises EvaluationError where there is none, or where a group's tasks have none in common.
    """
    chosen: tuple[str, str] | None = None
    samples: list[Sample] = []
    for leaf in leaves:
        logged = results["samples"][leaf]
        options = list(_usable_metrics(leaf, logged, results))
        if chosen is None and options:
            chosen = options[0]
        if chosen is None or chosen not in options:
            raise EvaluationError(
                f"task {leaf} has no metric{' of the group' if len(leaves) > 1 else ''} that is a mean over "
                "its questions, so nothing can be paired"
            )
        metric, filter_name = chosen
        entries = [entry for entry in logged if entry["filter"] == filter_name]
        entries.sort(key=lambda entry: int(entry["doc_id"]))
        samples += [_sample(entry, metric, len(samples) + place) for place, entry in enumerate(entries)]
    assert chosen is not None
    shots = results["n-shot"][leaves[0]]
    return TaskSamples(
        metric=chosen[0],
        num_fewshot=int(shots if isinstance(shots, int | float) else 0),
        samples=tuple(samples),
    )


def _usable_metrics(leaf: str, logged: list[JsonObject], results: JsonObject) -> Iterator[tuple[str, str]]:
    """Yield (metric, filter), the strict filter first."""
    filters = list(dict.fromkeys(entry["filter"] for entry in logged))
    filters.sort(key=lambda name: name != STRICT)
    for filter_name in filters:
        entries = [entry for entry in logged if entry["filter"] == filter_name]
        for metric in entries[0]["metrics"]:
            values = [entry.get(metric) for entry in entries]
            numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
            if len(numbers) < len(values):
                continue
            mean = math.fsum(numbers) / len(numbers)
            total = results["results"][leaf].get(f"{metric},{filter_name}")
            more_is_better = results.get("higher_is_better", {}).get(leaf, {}).get(metric)
            if (
                isinstance(total, int | float)
                and math.isclose(mean, total, abs_tol=1e-9)
                and more_is_better is not False
            ):
                yield metric, filter_name


def _sample(entry: JsonObject, metric: str, number: int) -> Sample:
    question = entry["doc"].get("question") if isinstance(entry["doc"], dict) else None
    answer = entry["resps"][0][0]
    return Sample(
        number=number,
        question=question if isinstance(question, str) else str(entry["arguments"][0][0]),
        target=str(entry["target"]).rsplit("#### ", 1)[-1].strip(),
        response=answer if isinstance(answer, str) else json.dumps(entry["resps"], default=str),
        value=float(entry[metric]),
    )
