"""Paired statistics against scipy, closed forms and simulated questions whose truth is known."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from moe4.evaluate.statistics import (
    detectable_difference,
    f1_interval,
    mcnemar,
    paired_test,
    questions_needed,
    wilson,
)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_a_binomial_test_of_the_flips(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 3000), st.data())
def test_wilson_is_scipys(total: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, total))
    expected = binomtest(successes, total).proportion_ci(method="wilson")
    found = wilson(successes, total)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def outcomes(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Before and after, by the number of questions of each kind."""
    before = np.repeat([1.0, 1.0, 0.0, 0.0], [both, lost, gained, neither])
    after = np.repeat([1.0, 0.0, 1.0, 0.0], [both, lost, gained, neither])
    return before, after


def test_recoverys_interval_is_that_of_scipys_paired_bootstrap() -> None:
    before, after = outcomes(1500, 90, 60, 350)
    found = paired_test(before, after)
    assert found.recovery == pytest.approx(1560 / 1590)
    expected = scipy.stats.bootstrap(
        (before, after),
        lambda a, b, axis: b.mean(axis=axis) / a.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.recovery_interval is not None
    width = expected.high - expected.low
    # A percentile of 4,000 draws is off by about 0.02 of the width; half questions move it by less.
    assert found.recovery_interval.low == pytest.approx(expected.low, abs=0.07 * width)
    assert found.recovery_interval.high == pytest.approx(expected.high, abs=0.07 * width)
    assert found.p_value == pytest.approx(binomtest(60, 150).pvalue)
    assert "worse by 1.50 points" in found.verdict()


@pytest.mark.parametrize("flips", [(0.002, 0.002), (0.01, 0.03), (0.10, 0.06)])
def test_intervals_hold_the_truth_as_often_as_they_say(flips: tuple[float, float]) -> None:
    """300 evaluations of 1,000 questions each; 95 % of the intervals must hold the true ratio.

    By chance alone the share of 300 lies within 3 standard errors, 0.04; with a flip or two a run the
    interval is an approximation, which may hold the truth too often.
    """
    gained, lost = flips
    cells = np.array([0.8 - lost, lost, gained, 0.2 - gained])
    truth = (0.8 - lost + gained) / 0.8
    held = 0
    for counts in np.random.default_rng(7).multinomial(1000, cells, size=300):
        interval = paired_test(*outcomes(*counts)).recovery_interval
        assert interval is not None
        held += interval.low <= truth <= interval.high
    assert held / 300 >= 0.91
    assert held / 300 <= 0.995


def test_without_flips_the_interval_has_a_width() -> None:
    found = paired_test(*outcomes(990, 0, 0, 10))
    assert (found.recovery, found.p_value) == (1.0, 1.0)
    assert found.recovery_interval is not None
    # Beta(1/2, n + 3/2) has its upper 2.5 % at about 2.5 / n.
    assert found.recovery_interval.low == pytest.approx(1 - 2.5 / 1000, abs=0.0005)
    assert found.verdict().startswith("within noise")


def test_metrics_that_are_not_right_or_wrong() -> None:
    generator = np.random.default_rng(3)
    before = generator.uniform(0.2, 0.9, 800)
    after = before + generator.normal(-0.02, 0.1, 800)
    found = paired_test(before, after)
    expected = scipy.stats.t.interval(
        0.95, 799, loc=(after - before).mean(), scale=scipy.stats.sem(after - before)
    )
    assert found.p_value is None
    assert found.difference_interval.as_list() == pytest.approx(list(expected), abs=0.0006)
    assert not found.within_noise


def test_questions_needed_give_the_power_they_promise() -> None:
    """Simulated evaluations with that many questions reject about 80 % of the time (the exact test: less)."""
    num = questions_needed(0.05, 0.02)
    flips = np.random.default_rng(5).multinomial(num, [0.015, 0.035, 0.95], size=600)
    z = (flips[:, 1] - flips[:, 0]) / np.sqrt(flips[:, 0] + flips[:, 1])
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.05)


@settings(max_examples=40)
@given(st.floats(0.001, 0.5), st.integers(20, 20_000))
def test_the_detectable_difference_needs_just_these_questions(rate: float, num: int) -> None:
    difference = detectable_difference(rate, num)
    if difference < 0.99:
        assert questions_needed(rate, difference) <= num
        assert questions_needed(rate, difference * 0.99) > num * 0.99


def test_gsm8ks_one_question_cannot_be_seen() -> None:
    """The example of docs/evaluation.md: 94.92 to 94.84 % of 1,319 is one question."""
    found = paired_test(*outcomes(1231, 21, 20, 47))
    assert found.within_noise
    assert found.questions_needed[0.001] > 200_000
    assert math.isclose(found.difference, -1 / 1319)


def test_f1_holds_its_own_value() -> None:
    interval = f1_interval(90, 5, 5, 100)
    assert interval.low < 180 / 190 < interval.high
    assert f1_interval(0, 0, 0, 5).low < 0.1


def test_rows_of_different_length_are_a_bug() -> None:
    with pytest.raises(ValueError, match="two equal rows"):
        paired_test([1.0], [1.0, 0.0])
