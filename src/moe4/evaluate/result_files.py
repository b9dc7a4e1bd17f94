"""The result files that `moe4 prove` keeps and the report and card are made from, as typed values.

Fields that a reader does without may be absent; none that is there may be null unless its type says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AllowInfNan, Field

from moe4.errors import EvaluationError
from moe4.files.own import OwnFile
from moe4.schema import NotNull, Own
from moe4.strict_json import JsonObject

EVALUATION = "evaluation.json"
COMPARISON = "comparison.json"
TOOLCHECK = "toolcheck.json"
PROBE = "probe.json"
POWER = "power.json"
ANSWERS = "answers.json"
REMEDY = "measure it again: moe4 prove SOURCE OUT --again"

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
"""The two ends of an interval."""
Measured = Annotated[float, AllowInfNan(True)]
"""A figure that may be infinite where it was measured; no file can hold that, for JSON has no such number."""


class Run(Own):
    """When, with what and by which command something was measured."""

    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    """UTC."""
    command: list[str]
    """Its words; SOURCE and OUT stand for the folders."""
    versions: dict[str, str]
    machine: str


class JudgedAnswer(Own):
    """What a model wrote to a question, and what it is worth: 1 right, 0 wrong, or a score between."""

    response: str
    value: float


class AnswerPair(Own):
    """Both models' answers to one question; no baseline where none was asked."""

    number: Count
    question: str
    target: str
    baseline: Annotated[JudgedAnswer | None, NotNull] = None
    release: JudgedAnswer


class TaskChange(Own):
    """What changed on a task from baseline to release, question by question."""

    num_questions: Count = 0
    level: Share = 0.95
    difference: float
    difference_interval: Ends | None = None
    recovery: float | None
    recovery_interval: Ends | None
    gained: Count
    lost: Count
    mcnemar_p: float | None = None
    within_noise: bool = False
    verdict: str
    detectable_difference: float | None = None
    questions_needed: dict[str, Count | None] = Field(default_factory=dict)
    stderr: float | None = None


class TaskResult(Own):
    """A task's scores: `release` and `baseline` hold the metric's mean by its name, and its `stderr`."""

    num_fewshot: Count
    num_questions: Count
    metric: str
    baseline: Annotated[dict[str, float | None] | None, NotNull] = None
    release: dict[str, float | None]
    change: Annotated[TaskChange | None, NotNull] = None

    @property
    def score(self) -> float:
        """The release's mean of the metric."""
        found = self.release[self.metric]
        assert found is not None  # see faults
        return found

    @property
    def baseline_score(self) -> float | None:
        """The baseline's mean of the metric; None without one."""
        return None if self.baseline is None else self.baseline[self.metric]

    def faults(self) -> Iterator[str]:
        """Yield scores that lack what their readers look up."""
        for name in ("baseline", "release"):
            scores = getattr(self, name)
            if scores is not None and scores.get(self.metric) is None:
                yield f"{name} has no {self.metric}, which metric names"
            if scores is not None and "stderr" not in scores:
                yield f"{name} has no stderr"


class EvaluationFile(Own):
    """`evaluation.json`, and what `moe4 eval --output` writes, there with every answer in `samples`.

    flips: the first of the questions that one model answered better than the other, by task.
    """

    version: Literal[1] = 1
    release: str
    baseline: str | None
    tasks: dict[str, TaskResult]
    samples: Annotated[dict[str, list[AnswerPair]] | None, NotNull] = None
    flips: dict[str, list[AnswerPair]] = Field(default_factory=dict)
    run: Annotated[Run | None, NotNull] = None
    stamp: str = ""


class Divergence(Own):
    """Kullback-Leibler divergence from the source, in nats a token."""

    mean: Measured
    interval: Annotated[list[Measured], Field(min_length=2, max_length=2)]
    median: Measured
    p99: Measured
    max: Measured


class Perplexity(Own):
    """Of both models on the text."""

    source: Measured
    release: Measured


class WorstToken(Own):
    """A token where the two models differ most."""

    sequence: Count
    kl: Measured
    context: str
    token: str
    source_best: str
    release_best: str
    source_probability: Share
    release_probability: Share


class ExpertsDifference(Own):
    """What a layer's experts add to the difference, if it has any: relative squared errors."""

    layer: Count
    added_error: Annotated[Measured | None, NotNull] = None
    experts_error: Annotated[Measured | None, NotNull] = None
    same_experts: Annotated[Share | None, NotNull] = None
    expert_errors: list[Measured] = Field(default_factory=list)
    expert_tokens: list[Count] = Field(default_factory=list)


class LayerDifference(ExpertsDifference):
    """Where the difference begins: the error after a layer, and what its experts add."""

    error: Measured
    kl: Measured


class ComparisonFile(Own):
    """`comparison.json`."""

    version: Literal[1] = 1
    source: str = ""
    release: str = ""
    data: str
    num_sequences: Count
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    num_tokens: Count
    kl: Divergence
    top1_agreement: Share
    top5_agreement: Share
    perplexity: Perplexity
    worst_tokens: list[WorstToken]
    layers: Annotated[list[LayerDifference], Field(min_length=1)]
    run: Annotated[Run | None, NotNull] = None
    stamp: str = ""


class Measure(Own):
    """A share of requests, with its interval and, for a check with a threshold, whether it is reached."""

    value: float
    interval: Ends
    num: Count
    successes: Count = 0
    true_positives: Count = 0
    false_positives: Count = 0
    false_negatives: Count = 0
    true_negatives: Count = 0
    threshold: Annotated[Share | None, NotNull] = None
    ok: bool = False

    @property
    def is_missed(self) -> bool:
        """Whether there is a threshold that is not reached."""
        return self.threshold is not None and not self.ok

    def faults(self) -> Iterator[str]:
        """Yield a threshold without a verdict."""
        if self.threshold is not None and "ok" not in self.model_fields_set:
            yield "threshold is there and ok is missing"


class Fault(Own):
    """What was wrong with one request's answer."""

    request: Count
    name: str
    notes: list[str]


class EndpointResult(Own):
    """Every measure of one endpoint; null where it does not apply."""

    model: str
    num_requests: Count
    measures: dict[str, Measure | None]
    num_calls: Count = 0
    faults_found: list[Fault] = Field(default_factory=list, alias="faults")


class Agreement(Own):
    """How two endpoints agree on the requests that both answered."""

    num: Count
    decision_agreement: Annotated[Measure | None, NotNull] = None
    decision_f1: Annotated[Measure | None, NotNull] = None
    finish_reason_agreement: Annotated[Measure | None, NotNull] = None
    same_calls: Annotated[Measure | None, NotNull] = None
    exact_gained: Count = 0
    exact_lost: Count = 0
    exact_mcnemar_p: float = 1.0

    def faults(self) -> Iterator[str]:
        """Yield a count without what was counted."""
        if self.num and self.decision_agreement is None:
            yield "decision_agreement is missing"


class ToolcheckFile(Own):
    """`toolcheck.json`."""

    version: Literal[1] = 1
    requests: list[str]
    num_requests: Count
    greedy: bool
    release: EndpointResult
    baseline: Annotated[EndpointResult | None, NotNull] = None
    agreement: Annotated[Agreement | None, NotNull] = None
    run: Annotated[Run | None, NotNull] = None
    stamp: str = ""

    def faults(self) -> Iterator[str]:
        """Yield measures that the release has and the baseline lacks."""
        if self.baseline is not None:
            for name in sorted(set(self.release.measures) - set(self.baseline.measures)):
                yield f"baseline.measures has no {name}, release.measures has"


class ProbeFile(Own):
    """`probe.json`: whether a server of the release gave the answers that moe4-probe.json expects."""

    version: Literal[1] = 1
    passed: bool
    summary: str
    run: Annotated[Run | None, NotNull] = None
    stamp: str = ""


MeasureName = Literal["verify", "probe", "kl", "top1", "experts"]


class Noticed(Own):
    """Whether a measure noticed a fault: its value beside the limit of what a right release gives.

    smallest: of a fault with sizes, the smallest that the measure noticed, as it did all larger ones that
    were tried; null where it noticed none.
    """

    value: Measured
    limit: Measured
    noticed: bool
    smallest: float | None = None


class PlantedFault(Own):
    """A fault, and what each measure made of it. size: the one that `measures` are of, in `unit`."""

    name: str
    title: str
    unit: Annotated[Literal["factor", "experts"] | None, NotNull] = None
    size: Annotated[float | None, NotNull] = None
    measures: Annotated[dict[MeasureName, Noticed], Field(min_length=1)]

    def faults(self) -> Iterator[str]:
        """Yield a unit without a size, or a size without a unit."""
        if (self.unit is None) != (self.size is None):
            yield "unit and size go together"


class PowerFile(Own):
    """`power.json`: which planted faults the measures of a release would have noticed.

    left_out: measures and faults that were not tried, each with the reason.
    """

    version: Literal[1] = 1
    data: str
    num_sequences: Count
    num_tokens: Count
    num_asked: Count
    """Sequences of the probe."""
    num_experts: Count
    """In all layers together."""
    faults_planted: Annotated[list[PlantedFault], Field(min_length=1)]
    left_out: dict[str, str] = Field(default_factory=dict)
    run: Annotated[Run | None, NotNull] = None
    stamp: str = ""


Result = TypeVar("Result", EvaluationFile, ComparisonFile, ToolcheckFile, ProbeFile, PowerFile)


def read_result(path: Path, kind: type[Result]) -> Result:
    """Return a result file, checked: the fields it has, and no others.

    Raises EvaluationError with one line: what cannot be read, every field that is wrong, what to do.
    """
    writer = ("run", "versions", "moe4")
    return OwnFile(form=kind, error=EvaluationError, remedy=REMEDY, writer=writer).read(path)


def to_json(result: Own) -> JsonObject:
    """Return a result as plain JSON types: what was measured, without version, run and stamp."""
    return result.model_dump(exclude_unset=True, by_alias=True, exclude={"version", "run", "stamp"})
