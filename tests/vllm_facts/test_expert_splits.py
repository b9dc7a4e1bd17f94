"""The size of groups that a model gets, and the ranks over which a vLLM without the plugin is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe4.recipe import GROUP_SIZES
from moe4.vllm_facts.expert_splits import (
    choose_group_size,
    one_group_a_rank,
    quantizing_advice,
    serving_advice,
)


@pytest.mark.parametrize(
    ("inputs", "width", "expected"),
    [
        ({7168, 2048}, 2048, 128),  # Kimi-K2
        ({256, 128}, 128, 64),  # k2-tiny: 128 would be one group
        ({128, 64}, 64, 32),
        ({256, 768, 96}, 768, 32),  # 96 columns are three groups of 32 and of no other size
        ({128, 32}, 32, 32),  # nothing leaves two groups
        ({7168, 1000}, 1000, 128),  # nothing divides: refused later
    ],
)
def test_the_largest_size_that_leaves_experts_two_groups(inputs: set[int], width: int, expected: int) -> None:
    assert choose_group_size(inputs, width) == expected


@given(inputs=st.sets(st.integers(1, 64).map(lambda n: 32 * n), min_size=1), blocks=st.integers(2, 64))
def test_what_is_chosen_divides_and_is_right_on_one_gpu(inputs: set[int], blocks: int) -> None:
    width = 32 * blocks
    size = choose_group_size({*inputs, width}, width)
    assert all(columns % size == 0 for columns in {*inputs, width})
    assert one_group_a_rank(width, size) is None
    for larger in (other for other in GROUP_SIZES if other > size):
        assert any(columns % larger for columns in {*inputs, width}) or width < 2 * larger


def test_one_group_or_less_is_named() -> None:
    assert one_group_a_rank(2048, 128, 8) is None
    assert one_group_a_rank(256, 128) is None
    assert "width, 128, is one group of 128 codes" in str(one_group_a_rank(128, 128))
    assert "width, 128 on each of 16 ranks, is one group of 128" in str(one_group_a_rank(2048, 128, 16))
    assert "width, 64 on each of 32 ranks, is less than one group" in str(one_group_a_rank(2048, 128, 32))


def test_advice_names_only_what_helps() -> None:
    assert quantizing_advice(128, 128) == "use group_size 64 or 32, or serve with moe4's plugin"
    assert quantizing_advice(64, 64) == "use group_size 32, or serve with moe4's plugin"
    assert quantizing_advice(32, 32) == "serve with moe4's plugin"
    assert serving_advice(128, 128) == "use a release in groups of 64 or 32 or an image with moe4's plugin"
    assert serving_advice(2048, 32, 64) == (
        "use tensor parallel 32 x pipeline parallel 2, expert parallelism or an image with moe4's plugin"
    )
    assert serving_advice(128, 64, 2).startswith(
        "use tensor parallel 1 x pipeline parallel 2, expert parallelism,"
    )
