"""The check's arithmetic: golden values worked out by hand, and what must hold of any two distributions."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe4.probe import check
from moe4.probe.check import Comparison, compare, judge, summarize


def logs(*probabilities: float) -> list[float]:
    return [math.log(value) for value in probabilities]


def test_both_list_the_same_tokens() -> None:
    """The rest has 0.1 on both sides."""
    kl, shift = compare([1, 2], logs(0.6, 0.3), dict(zip([1, 2], logs(0.5, 0.4), strict=True)))
    assert kl == pytest.approx(0.6 * math.log(0.6 / 0.5) + 0.3 * math.log(0.3 / 0.4), abs=1e-8)
    assert shift == pytest.approx(math.sqrt((math.log(1.2) ** 2 + math.log(0.75) ** 2) / 2))


def test_each_lists_a_token_that_the_other_does_not() -> None:
    """Token 2 has at most 0.25 in the answer, where 0.15 is left; token 3 at most 0.1 in the expectation."""
    kl, shift = compare([1, 2], logs(0.6, 0.3), dict(zip([1, 3], logs(0.6, 0.25), strict=True)))
    assert kl == pytest.approx(0.3 * math.log(0.3 / 0.15) + 0.1 * math.log(0.1 / 0.25), abs=1e-7)
    assert shift == pytest.approx(math.log(0.3 / 0.25) / math.sqrt(3))


def test_another_token_for_certain() -> None:
    """Nothing in common: the divergence is large, though both have little beside what they list."""
    kl, shift = compare([1, 2], logs(0.98, 0.01), dict(zip([3, 4], logs(0.98, 0.01), strict=True)))
    assert kl > 3
    assert shift > 3


@st.composite
def two_models(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Return log-probabilities of 30 tokens by two models that are not far apart."""
    logits = draw(st.lists(st.floats(-12, 0), min_size=30, max_size=30))
    moved = [value + draw(st.floats(-1, 1)) for value in logits]
    return normalize(logits), normalize(moved)


def normalize(logits: list[float]) -> list[float]:
    total = math.log(sum(map(math.exp, logits)))
    return [value - total for value in logits]


def best(logprobs: list[float], num: int) -> dict[int, float]:
    order = sorted(range(len(logprobs)), key=lambda token: -logprobs[token])
    return {token: logprobs[token] for token in order[:num]}


@given(two_models())
def test_what_is_not_listed_never_counts_for_more_than_it_is(
    models: tuple[list[float], list[float]],
) -> None:
    p, q = models
    expected, listed = best(p, 10), best(q, 10)
    kl, shift = compare(list(expected), list(expected.values()), listed)
    every = expected.keys() | listed.keys()
    exact = math.sqrt(sum((p[token] - q[token]) ** 2 for token in every) / len(every))
    assert 0 <= shift <= exact + 1e-9
    assert kl >= 0
    assert compare(list(expected), list(expected.values()), expected) == (pytest.approx(0, abs=1e-6), 0)


def test_figures_of_many() -> None:
    figures = summarize([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert figures["typical"] == pytest.approx(2**2.5)
    assert figures["upper"] == pytest.approx(math.sqrt(16 * 32))
    assert figures["worst"] == pytest.approx(32)
    assert summarize([0.0])["typical"] == pytest.approx(1e-6)


# Expected: token 0 nearly certain, then 1 to 19. bfloat16 makes all of it 0.1 likelier, so its shift is 0.1.
LOGPROBS = [-0.2] + [-4.0 - place / 10 for place in range(19)]
SEQUENCE = {
    "tokens": [1, 2],
    "released": {"ids": list(range(20)), "logprobs": LOGPROBS},
    "bf16": {"ids": list(range(20)), "logprobs": [value + 0.1 for value in LOGPROBS]},
}
EXPECTED: dict[str, Any] = {"sequences": [SEQUENCE] * 60}


def verdict(shifts: list[float], *, decoded: int = 0, best_token: int = 0) -> dict[str, Any]:
    prompts = [Comparison(number, False, 0.01, shift, 0) for number, shift in enumerate(shifts)]
    after = [Comparison(number, True, 0.02, 0.5, best_token) for number in range(decoded)]
    return judge(EXPECTED, [*prompts, *after])


@pytest.mark.parametrize(
    ("shifts", "ok"),
    [
        ([0.17] * 60, True),  # typical: 1.8 times 0.1
        ([0.19] * 60, False),
        ([0.1] * 40 + [0.19] * 20, True),  # the upper third: twice 0.1
        ([0.1] * 40 + [0.21] * 20, False),
        ([0.1] * 59 + [1.9], True),  # one sequence alone: 2
        ([0.1] * 59 + [2.1], False),
    ],
)
def test_bounds(shifts: list[float], ok: bool) -> None:
    assert verdict(shifts)["ok"] is ok


def test_what_is_decoded_is_judged_apart_where_it_is_enough() -> None:
    few = verdict([0.1] * 60, decoded=check.FEWEST_DECODED - 1)
    assert few["ok"]
    assert [group["name"] for group in few["groups"]] == ["prompts"]
    enough = verdict([0.1] * 60, decoded=check.FEWEST_DECODED)
    assert [(group["name"], group["ok"]) for group in enough["groups"]] == [
        ("prompts", True),
        ("decoded", False),
    ]
    assert not enough["ok"]
    assert enough["num_decoded"] == check.FEWEST_DECODED
    assert enough["kl"]["worst"] == 0.02


def test_one_wrong_token_is_enough() -> None:
    """Token 1 is 3.8 nats less likely than token 0; one that is not listed counts as the least likely."""
    for token in (1, 99):
        result = verdict([0.1] * 60, decoded=1, best_token=token)
        assert result["wrong_tokens"] == 1
        assert not result["ok"]
        assert "1 wrong tokens (bound 0)" in check.describe(result)


def test_a_token_that_rounding_may_put_first_is_not_wrong() -> None:
    """Where bfloat16 alone moves a sequence by 1.0, a token 3.8 nats behind is within 4 times that."""
    moved = {**SEQUENCE, "bf16": {"ids": list(range(20)), "logprobs": [v + 1.0 for v in LOGPROBS]}}
    expected = {"sequences": [moved, *[SEQUENCE] * 59]}
    first = [Comparison(number, False, 0.01, 0.1, 1 if number == 0 else 0) for number in range(60)]
    assert judge(expected, first)["wrong_tokens"] == 0
    assert judge(EXPECTED, first)["wrong_tokens"] == 1
