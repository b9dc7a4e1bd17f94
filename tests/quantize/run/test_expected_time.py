"""What layers are expected to take, counted in operations."""

import pytest

from moe4.model.architecture import ExpertShape
from moe4.quantize.run.expected_time import expert_operations
from moe4.recipe import Gptq, Recipe

SIDE = 64


def shape(hidden_size: int, width: int) -> ExpertShape:
    return ExpertShape(prefix="x", num_experts=1, hidden_size=hidden_size, width=width)


def test_an_expert_s_operations() -> None:
    """Of a square one: two factors of n^3 / 3, solves of 3 n^3, and for each token 2 n^2 and 6 n^2."""
    recipe = Recipe(gptq=Gptq(descent_sweeps=0))
    without = expert_operations(shape(SIDE, SIDE), recipe, 0)
    assert without == pytest.approx((2 / 3 + 3) * SIDE**3)
    assert expert_operations(shape(SIDE, SIDE), recipe, 10) - without == pytest.approx(10 * 8 * SIDE**2)


def test_sweeps_solve_again_and_rounding_solves_nothing() -> None:
    twice = Recipe(gptq=Gptq(descent_sweeps=2))
    factors = 2 / 3 * SIDE**3
    assert expert_operations(shape(SIDE, SIDE), twice, 0) - factors == pytest.approx(5 * 3 * SIDE**3)
    rounded = [expert_operations(shape(SIDE, side), Recipe(method="rtn"), 1e6) for side in (32, 64)]
    assert rounded[1] == 2 * rounded[0] > 0
