"""Results of API functions that no layer below defines.

`str(result)` is what the command prints; `result.as_dict()` is what it prints with `--json`.
"""

from typing import cast

from moe4.evaluate.result_files import ComparisonFile, PowerFile, ToolcheckFile, to_json
from moe4.probe.ask import describe as describe_verdict
from moe4.probe.check import Verdict
from moe4.probe.summary import ProbeSummary
from moe4.probe.summary import describe as describe_summary
from moe4.schema import Own
from moe4.strict_json import JsonObject


class ProbeResult(ProbeSummary):
    """A summary of the expected answers that were written. output: their file."""

    output: str

    @property
    def ok(self) -> bool:
        """Always true: the answers were written."""
        return True

    def __str__(self) -> str:
        return f"{describe_summary(self)}\nwritten   {self.output}"


class AnswerDivergence(Own):
    """KL divergence of a server's answers from the expected ones, in nats."""

    mean: float
    worst: float


class AnswerGroup(Own):
    """The shifts of one kind of question over `num` comparisons, and the bounds that they must meet."""

    name: str
    num: int
    ok: bool
    shift: dict[str, float]
    bounds: dict[str, float]


class AnswerCheck(Own):
    """The verdict on a server: whether it gives the release's expected answers."""

    url: str
    model: str
    ok: bool
    groups: list[AnswerGroup]
    wrong_tokens: int
    kl: AnswerDivergence
    worst_sequence: int
    num_sequences: int
    num_asked: int
    num_decoded: int

    def __str__(self) -> str:
        return describe_verdict(cast(Verdict, self.as_dict()))


class ComparisonResult(ComparisonFile):
    """How far a release's predictions differ from its source's, by token, layer and expert."""

    def as_dict(self) -> JsonObject:
        """Return plain JSON types."""
        return to_json(self)

    def __str__(self) -> str:
        from moe4.evaluate.comparison.compare import describe

        return describe(self)


class PowerResult(PowerFile):
    """Which planted faults the measures of a release noticed, and how small ones."""

    def as_dict(self) -> JsonObject:
        """Return plain JSON types."""
        return to_json(self)

    def __str__(self) -> str:
        from moe4.power.run import describe

        return describe(self)


class ToolcheckResult(ToolcheckFile):
    """How a server calls tools, and what is wrong with its calls."""

    @property
    def failures(self) -> list[str]:
        """The measures that missed their thresholds."""
        from moe4.evaluate.toolcheck.summary import failed_checks

        return failed_checks(self)

    @property
    def ok(self) -> bool:
        """Whether every threshold was reached."""
        return not self.failures

    def as_dict(self) -> JsonObject:
        """Return plain JSON types."""
        return to_json(self)

    def __str__(self) -> str:
        from moe4.evaluate.toolcheck.summary import describe

        return describe(self)
