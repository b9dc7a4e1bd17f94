"""What each measure says of a faulty release, and from where on it counts as noticed.

Limits come from the release as it is, run twice: in bfloat16, as a server computes, and in float32. What lies
between two right ways to compute, or within the interval that the report gives, is not noticed. An expert
stands out in a list of all if its error is STANDS_OUT times the largest that the release has anyhow.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moe4.evaluate.result_files import MeasureName, Noticed
from moe4.power.passes import Found, Weighed, largest
from moe4.probe.check import Comparison, Expected, LikelyTokens, Position, Question, Verdict, assess, judge
from moe4.probe.form import Expectation, ExpectedAnswers
from moe4.verify.checks import LARGEST_WEIGHT_ERROR

STANDS_OUT = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of a release; expected: None where its expected answers are not used."""

    kl: float
    top1: float
    experts: float
    expected: Expected | None

    def apply(self, found: Found) -> dict[MeasureName, Noticed]:
        """Return what each measure says of a release with a fault.

        One that gives NaN is noticed: `moe4 compare` and a server end in an error.
        """
        measures = self.weigh(found.weighed, found.num_changed)
        experts = measures.pop("experts")
        if self.expected is not None:
            verdict = None if found.answers is None else ask(self.expected, found.answers)
            measures["probe"] = Noticed(
                value=math.nan if verdict is None else _worst_share(verdict),
                limit=1.0,
                noticed=verdict is None or not verdict["ok"],
            )
        kl = float(found.tokens.kl.mean())
        top1 = found.tokens.top1_agreement if math.isfinite(kl) else math.nan
        measures["kl"] = Noticed(value=kl, limit=self.kl, noticed=not kl <= self.kl)
        measures["top1"] = Noticed(value=top1, limit=self.top1, noticed=not top1 >= self.top1)
        return measures | {"experts": experts}

    def weigh(self, weighed: Weighed, num_changed: int = 0) -> dict[MeasureName, Noticed]:
        """Return what those measures say that need no pass.

        num_changed: tensors and files beside the experts that are not the source's.
        """
        error = largest(weighed.expert_errors.values())
        return {
            "verify": _weights(weighed, num_changed),
            "experts": Noticed(value=error, limit=self.experts, noticed=not error <= self.experts),
        }


def find_limits(right: Iterable[Found], expected: Expected | None) -> Limits:
    """Return the limits that none of the right releases exceeds."""
    every = list(right)
    return Limits(
        kl=max(found.tokens.interval(found.tokens.kl.double()).high for found in every),
        top1=min(found.tokens.interval(found.tokens.same_best).low for found in every),
        experts=STANDS_OUT * max(max(found.weighed.expert_errors.values()) for found in every),
        expected=expected,
    )


def as_expected(answers: ExpectedAnswers) -> Expected:
    """Return a file of expected answers as the check of a server reads it."""
    return {
        "top": answers.top,
        "sequences": [
            {
                "tokens": sequence.tokens,
                "released": _likely(sequence.released),
                "bf16": _likely(sequence.bf16 or sequence.released),
            }
            for sequence in answers.sequences
        ],
    }


def ask(expected: Expected, answers: list[Expectation]) -> Verdict:
    """Return the verdict of `moe4 probe --url` on a server that gives these answers to the prompts."""
    found: list[Comparison] = []
    for number, (sequence, answer) in enumerate(zip(expected["sequences"], answers, strict=True)):
        position = Position(answer.ids[0], dict(zip(answer.ids, answer.logprobs, strict=True)))
        comparison = assess(expected, Question(number, sequence["tokens"], 1), [position])
        assert comparison is not None
        found.append(comparison)
    return judge(expected, found)


def _likely(found: Expectation) -> LikelyTokens:
    return {"ids": found.ids, "logprobs": found.logprobs}


def _worst_share(verdict: Verdict) -> float:
    """Return the largest figure as a multiple of its bound; a wrong token alone counts as one beyond it."""
    shares = [
        value / group["bounds"][figure]
        for group in verdict["groups"]
        for figure, value in group["shift"].items()
    ]
    return max(*shares, float(1 + verdict["wrong_tokens"]) if verdict["wrong_tokens"] else 0.0)


def _weights(weighed: Weighed, num_changed: int) -> Noticed:
    """Return what `moe4 verify --source` says: what is not quantized has to be the source's, bit for bit."""
    if num_changed:
        return Noticed(value=num_changed, limit=0.0, noticed=True)
    error = weighed.weight_error or 0.0
    return Noticed(value=error, limit=LARGEST_WEIGHT_ERROR, noticed=not error <= LARGEST_WEIGHT_ERROR)
