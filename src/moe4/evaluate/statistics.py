"""Paired statistics: what two models' answers to the same questions say, and what they cannot.

Resampling is the Bayesian bootstrap (Rubin, Ann. Statist. 9, 1981): every draw weights the questions anew,
pairs kept together. For answers that are right or wrong a question is one of four kinds, so a draw is one
from a Dirichlet distribution over the kinds; each kind starts with half a question (Jeffreys' prior), without
which two models with no flips would get an interval of no width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = 0.95
POWER = 0.8
SEED = 0
DIFFERENCES = (0.001, 0.005, 0.01)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """From `low` to `high`, at the level of confidence `LEVEL`."""

    low: float
    high: float

    def as_list(self) -> list[float]:
        return [self.low, self.high]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """What the answers of a baseline and a release to the same questions say.

    recovery: the release's mean over the baseline's; None where the baseline's is zero.
    p_value: exact McNemar test on the flips, two-sided; None for metrics that are not right or wrong.
    detectable: the smallest difference that so many questions would show (power 0.8, level 0.05).
    questions_needed: for differences of 0.1, 0.5 and 1 percentage points, the questions that would show them.
    """

    num_questions: int
    difference: float
    difference_interval: Interval
    recovery: float | None
    recovery_interval: Interval | None
    gained: int
    lost: int
    p_value: float | None
    detectable: float
    questions_needed: dict[float, int]

    @property
    def within_noise(self) -> bool:
        """Say whether the answers are what two equally good models would give."""
        if self.p_value is not None:
            return self.p_value >= 1 - LEVEL
        return self.difference_interval.low <= 0 <= self.difference_interval.high

    def verdict(self) -> str:
        """Return one plain sentence."""
        direction = "better" if self.difference > 0 else "worse"
        test = "" if self.p_value is None else f" (McNemar p = {self.p_value:.2g})"
        if not self.within_noise:
            return f"the release is {direction} by {100 * abs(self.difference):.2f} points{test}"
        return (
            f"within noise{test}: {self.num_questions} questions show differences from "
            f"{100 * self.detectable:.2f} points on"
        )


def paired_test(before: Sequence[float], after: Sequence[float]) -> PairedTest:
    """Return the statistics of paired outcomes, both in the order of the questions."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"paired outcomes must be two equal rows, found {first.shape} and {second.shape}")
    binary = bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all())
    gained, lost = int((second > first).sum()), int((second < first).sum())
    means = _draw_binary(first, second) if binary else _draw_means(first, second)
    base = float(first.mean())
    flip_rate = (gained + lost + 1) / (len(first) + 2)
    spread = flip_rate if binary else float(((second - first) ** 2).mean())
    has_recovery = base > 0 and bool((means[:, 0] > 0).all())
    return PairedTest(
        num_questions=len(first),
        difference=float((second - first).mean()),
        difference_interval=_percentiles(means[:, 1] - means[:, 0]),
        recovery=float(second.mean()) / base if base > 0 else None,
        recovery_interval=_percentiles(means[:, 1] / means[:, 0]) if has_recovery else None,
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost) if binary else None,
        detectable=detectable_difference(spread, len(first)),
        questions_needed={value: questions_needed(spread, value) for value in DIFFERENCES},
    )


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p value: flips as fair coins (McNemar 1947, in its binomial form)."""
    flips, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(flips, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**flips))


def questions_needed(flip_rate: float, difference: float) -> int:
    """Return how many questions show a difference with 80 % power at the 5 % level (Connor 1987).

    flip_rate: the share of questions that the two models answer differently (of other metrics, the mean
    square of the change); at least the difference itself.
    """
    rate = max(flip_rate, abs(difference))
    alpha, beta = NormalDist().inv_cdf((1 + LEVEL) / 2), NormalDist().inv_cdf(POWER)
    root = alpha * math.sqrt(rate) + beta * math.sqrt(max(0.0, rate - difference**2))
    return math.ceil((root / difference) ** 2)


def detectable_difference(flip_rate: float, num_questions: int) -> float:
    """Return the smallest difference that so many questions show; the inverse of `questions_needed`."""
    low, high = 1e-7, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if questions_needed(flip_rate, middle) <= num_questions:
            high = middle
        else:
            low = middle
    return high


def wilson(successes: int, total: int) -> Interval:
    """Return the Wilson score interval of a share; from 0 to 1 where nothing was counted."""
    if total == 0:
        return Interval(low=0.0, high=1.0)
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    share = successes / total
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(low=0.0 if successes == 0 else low, high=1.0 if successes == total else high)


def f1_interval(both: int, only_found: int, only_expected: int, neither: int) -> Interval:
    """Return the bootstrap interval of F1 = 2 both / (2 both + only_found + only_expected)."""
    cells = np.array([both, only_found, only_expected, neither], dtype=np.float64) + 0.5
    draws = np.random.default_rng(SEED).dirichlet(cells, size=DRAWS)
    return _percentiles(2 * draws[:, 0] / (2 * draws[:, 0] + draws[:, 1] + draws[:, 2]))


def _draw_binary(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return draws [DRAWS, 2] of both models' means from the four kinds of questions."""
    both = float((first * second).sum())
    cells = np.array([both, first.sum() - both, second.sum() - both, 0.0])
    cells[3] = len(first) - cells.sum()
    draws = np.random.default_rng(SEED).dirichlet(cells + 0.5, size=DRAWS)
    return np.stack([draws[:, 0] + draws[:, 1], draws[:, 0] + draws[:, 2]], axis=1)


def _draw_means(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return draws [DRAWS, 2] of both models' means, each question's weight exponential."""
    generator = np.random.default_rng(SEED)
    pairs, rows = np.stack([first, second], axis=1), []
    for _ in range(DRAWS // 1000):
        weights = generator.standard_exponential((1000, len(first)))
        rows.append(weights @ pairs / weights.sum(axis=1, keepdims=True))
    return np.concatenate(rows)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))


def mean_interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Interval:
    """Return the bootstrap interval of sum(sums) / sum(counts), clusters drawn whole."""
    generator = np.random.default_rng(SEED)
    rows = []
    for _ in range(DRAWS // 1000):
        weights = generator.standard_exponential((1000, len(sums)))
        rows.append(weights @ sums / (weights @ counts))
    return _percentiles(np.concatenate(rows))
