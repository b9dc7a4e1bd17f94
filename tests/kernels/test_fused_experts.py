"""`fused_experts` against float64, on every path this machine has."""

import dataclasses
from functools import cache

import pytest
import torch
from expert_cases import INTEGERS, U16, Case, error_bound, make_case, weight_dtype
from torch import Tensor

from moe4.kernels import available_paths, fused_experts, fused_experts_reference

PATHS = available_paths()
GROUP_SIZES = (32, 64, 128)
TOKENS = (0, 1, 2, 3, 5, 8, 17, 33, 130)


def run(case: Case, **options: object) -> Tensor:
    return fused_experts(**vars_of(case), **options)  # type: ignore[arg-type]


def vars_of(case: Case) -> dict[str, object]:
    return {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}


References = dict[torch.dtype, Tensor]  # by what the decoded weights are rounded to


def references(case: Case) -> References:
    return {
        dtype: fused_experts_reference(**vars_of(case), weight_dtype=dtype)  # type: ignore[arg-type]
        for dtype in {weight_dtype(path) for path in PATHS}
    }


def check(case: Case, path: str, all_expected: References) -> None:
    """Hold each element to the worst case, and the whole to what rounding does on the average."""
    expected = all_expected[weight_dtype(path)]
    result = run(case, path=path)
    assert result.dtype == case.hidden_states.dtype
    assert result.shape == case.hidden_states.shape
    error = (result.double() - expected).abs()
    assert bool((error <= error_bound(case, path, expected)).all())
    # Rounding errors are independent, so they add as squares: rounding a vector once to bfloat16 leaves at
    # most U16 of its norm. What float32's many roundings leave stays below 2^-20 at these sizes.
    dtype = case.hidden_states.dtype
    squares = 2.0**-40
    squares += {torch.bfloat16: U16, torch.float16: 2.0**-11, torch.float32: 0}[dtype] ** 2  # the result
    if path == "avx512_bf16":
        squares += U16**2  # silu(gate) * up
        squares += U16**2 if dtype != torch.bfloat16 else 0  # the hidden states
    if path in INTEGERS:
        # Both again; and as gate and up multiply, the hidden states' errors count twice. A group's largest
        # magnitude is about four times the root of its squares' mean in x, which is normal, in act six
        # times.
        squares += (2 * 4**2 + 6**2) * INTEGERS[path] ** 2
    assert error.norm() <= squares**0.5 * expected.norm()


@cache
def tiny_case(tokens: int, group_size: int, dtype: torch.dtype) -> tuple[Case, References]:
    """k2-tiny's experts: 256 x 128, 24 of them, top 4."""
    case = make_case(tokens=tokens, group_size=group_size, dtype=dtype, seed=tokens)
    return case, references(case)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_agrees_with_float64(path: str, group_size: int, tokens: int) -> None:
    case, expected = tiny_case(tokens, group_size, torch.bfloat16)
    check(case, path, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_other_dtypes_agree_with_float64(path: str, group_size: int, dtype: torch.dtype) -> None:
    case, expected = tiny_case(17, group_size, dtype)
    check(case, path, expected)


@cache
def odd_case(group_size: int) -> tuple[Case, References]:
    """Widths that end within a line on every path, with more rows than one work item."""
    case = make_case(
        tokens=13,
        hidden=7 * group_size,
        inter=3 * group_size,
        experts=5,
        group_size=group_size,
        dtype=torch.float32,
    )
    return case, references(case)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_widths_that_are_no_whole_lines(path: str, group_size: int) -> None:
    case, expected = odd_case(group_size)
    check(case, path, expected)


@cache
def wide_case(group_size: int) -> tuple[Case, References]:
    """A slice of Kimi-K2's experts, whole rows of 7168 columns."""
    case = make_case(tokens=5, hidden=7168, inter=256, experts=3, top_k=2, group_size=group_size)
    return case, references(case)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_wide_rows(path: str, group_size: int) -> None:
    case, expected = wide_case(group_size)
    check(case, path, expected)


@pytest.mark.parametrize("path", PATHS)
def test_all_tokens_on_one_expert(path: str) -> None:
    case = make_case(tokens=130, experts=3, dtype=torch.float32)
    case = dataclasses.replace(case, topk_ids=torch.full_like(case.topk_ids, 2))
    check(case, path, references(case))


@pytest.mark.parametrize("path", PATHS)
def test_many_tokens_are_taken_in_blocks(path: str) -> None:
    """With more than 240 tokens an expert, on the average, the rest waits."""
    case = make_case(tokens=700, hidden=128, experts=2, top_k=1)
    result = run(case, path=path)
    check(case, path, references(case))
    part = slice(300, 700)
    alone = dataclasses.replace(
        case,
        hidden_states=case.hidden_states[part],
        topk_ids=case.topk_ids[part],
        topk_weights=case.topk_weights[part],
    )
    assert torch.equal(run(alone, path=path), result[part])


@pytest.mark.parametrize("path", PATHS)
def test_ids_may_be_int32(path: str) -> None:
    case = make_case(tokens=8)
    narrow = dataclasses.replace(case, topk_ids=case.topk_ids.int())
    assert torch.equal(run(case, path=path), run(narrow, path=path))


@pytest.mark.parametrize("path", PATHS)
def test_missing_experts_add_nothing(path: str) -> None:
    case = make_case(tokens=4)
    nothing = dataclasses.replace(case, topk_ids=torch.full_like(case.topk_ids, -1))
    assert torch.equal(run(nothing, path=path), torch.zeros_like(case.hidden_states))
    no_choice = dataclasses.replace(
        case, topk_ids=case.topk_ids[:, :0], topk_weights=case.topk_weights[:, :0]
    )
    assert torch.equal(run(no_choice, path=path), torch.zeros_like(case.hidden_states))


@pytest.mark.parametrize("path", PATHS)
def test_zero_scales_give_zero(path: str) -> None:
    case = make_case(tokens=3)
    zero = dataclasses.replace(case, w2_scale=torch.zeros_like(case.w2_scale))
    assert torch.equal(run(zero, path=path), torch.zeros_like(case.hidden_states))


@pytest.mark.parametrize("path", PATHS)
def test_negating_all_down_scales_negates_the_result(path: str) -> None:
    case = make_case(tokens=3)
    negative = dataclasses.replace(case, w2_scale=-case.w2_scale)
    assert torch.equal(run(negative, path=path), -run(case, path=path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("path", PATHS)
def test_nan_stays_in_its_row(path: str, bad: float) -> None:
    case = make_case(tokens=9)
    clean = run(case, path=path)
    case.hidden_states[4, 7] = bad
    case.topk_ids[4] = torch.tensor([0, 2, 3, 4])
    dirty = run(case, path=path)
    assert not dirty[4].isfinite().any()
    others = [token for token in range(9) if token != 4]
    assert torch.equal(dirty[others], clean[others])


@pytest.mark.parametrize("hidden, inter, group_size", [(256, 128, 128), (480, 96, 32), (7168, 256, 64)])
@pytest.mark.parametrize("path", PATHS)
def test_a_row_does_not_depend_on_its_batch(path: str, hidden: int, inter: int, group_size: int) -> None:
    tokens = 23
    case = make_case(
        tokens=tokens, hidden=hidden, inter=inter, experts=4, group_size=group_size, dtype=torch.float32
    )
    whole = run(case, path=path)
    for step in (1, 2, 5, 7):
        for first in range(0, tokens, step):
            part = slice(first, first + step)
            alone = dataclasses.replace(
                case,
                hidden_states=case.hidden_states[part],
                topk_ids=case.topk_ids[part],
                topk_weights=case.topk_weights[part],
            )
            assert torch.equal(run(alone, path=path), whole[part])


@pytest.mark.parametrize("path", PATHS)
def test_same_bits_every_time_and_with_any_number_of_threads(path: str) -> None:
    case = make_case(tokens=40, hidden=512, inter=384, dtype=torch.float32)
    first = run(case, path=path, num_threads=1)
    for num_threads in (1, 2, 3, 7, None):
        assert torch.equal(run(case, path=path, num_threads=num_threads), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_out_may_be_the_input(dtype: torch.dtype) -> None:
    case = make_case(tokens=6, dtype=dtype)
    expected = run(case)
    assert run(case, out=case.hidden_states) is case.hidden_states
    assert torch.equal(case.hidden_states, expected)


def test_strided_activations_are_read_right() -> None:
    case = make_case(tokens=6)
    strided = dataclasses.replace(
        case,
        hidden_states=case.hidden_states.T.contiguous().T,
        topk_ids=case.topk_ids.T.contiguous().T,
        topk_weights=case.topk_weights.T.contiguous().T,
    )
    assert torch.equal(run(strided), run(case))


def pass_on(columns: dict[int, Tensor], path: str) -> Tensor:
    """Run an expert that is exact in float32: its result is column 0 plus column 2, rounded once."""
    first = columns[0]
    x = torch.zeros(len(first), 32, dtype=first.dtype)
    for column, values in columns.items():
        x[:, column] = values
    x[:, 1] = 32  # silu(32) is 32 in float32; the routing weight takes it out again
    gate_up = torch.zeros(1, 64, 32, dtype=torch.int64)
    gate_up[0, 0, 1] = 1
    gate_up[0, 32, [0, 2]] = 1
    down = torch.zeros(1, 32, 32, dtype=torch.int64)
    down[0, 0, 0] = 1

    def pack(codes: Tensor) -> Tensor:
        words = ((codes + 8).unflatten(-1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
        return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)

    return fused_experts(
        x,
        pack(gate_up),
        torch.ones(1, 64, 1, dtype=torch.bfloat16),
        pack(down),
        torch.ones(1, 32, 1, dtype=torch.bfloat16),
        torch.full((len(first), 1), 1 / 32),
        torch.zeros(len(first), 1, dtype=torch.int64),
        group_size=32,
        path=path,
    )[:, 0]


FLOAT_PATHS = [path for path in PATHS if not path.endswith(("_bf16", "_int16", "_vnni"))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_goes_in_and_comes_out(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.abs() < 1e37]  # 32 times as much is still finite in float32
    assert torch.equal(pass_on({0: every}, "portable"), every)


@pytest.mark.parametrize("dtype, ulp", [(torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
@pytest.mark.parametrize("path", FLOAT_PATHS)
def test_the_result_is_rounded_to_nearest_and_ties_to_even(path: str, dtype: torch.dtype, ulp: float) -> None:
    values = torch.arange(1, 2, ulp).to(dtype)
    for part in (0.25, 0.5, 0.75):
        expected = (values.double() + part * ulp).float().to(dtype)
        assert torch.equal(pass_on({0: values, 2: torch.full_like(values, part * ulp)}, path), expected)
    overflow = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    if dtype == torch.float16:  # 65504 + 15 rounds down, 65504 + 16 is a tie and goes to infinity
        assert pass_on({0: overflow, 2: torch.tensor([15.0]).half()}, path).item() == 65504
        assert pass_on({0: overflow, 2: torch.tensor([16.0]).half()}, path).item() == float("inf")
