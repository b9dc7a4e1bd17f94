"""avx512_vnni (W4A8) and the paths named int16 (W4A16) against the same sums in integers, to the bit."""

import pytest
import torch
from expert_cases import INT16, make_case
from torch import Tensor

from moe4.kernels import available_paths, fused_experts
from moe4.kernels.reference import unpack_codes

# The largest integer that a group's largest magnitude becomes.
MOST = {"avx512_vnni": 127, **dict.fromkeys(INT16, 127 * 256)}
PATHS = [path for path in MOST if path in available_paths()]
each_path = pytest.mark.parametrize("path", PATHS)
pytestmark = pytest.mark.skipif(not PATHS, reason="this processor has no path in integers")


def quantize(x: Tensor, group_size: int, most: int) -> tuple[Tensor, Tensor]:
    """Return int64 elements [tokens, groups, group_size] and float32 scales [tokens, groups] of rows."""
    groups = x.unflatten(1, (-1, group_size))
    largest = groups.abs().amax(2)
    # Not most / largest, which torch computes as a rounded reciprocal times most.
    quotient = torch.full_like(largest, most) / largest
    inverse = torch.where(largest >= 2.0**-100, quotient, torch.zeros_like(largest))
    return (groups * inverse.unsqueeze(2)).round().long(), largest / most


def multiply(x: Tensor, packed: Tensor, scale: Tensor, group_size: int, most: int) -> Tensor:
    """Return float32 [tokens, rows]: integer sums over each group; scaled and added group by group.

    A sum is converted to float32, which changes those above 2^24. Scaled, it is exact in float64, where
    adding it to the total so far rounds at 2^-53, and the conversion to float32 at 2^-24: one rounding, as
    the processor's, but for ties that no test here meets.
    """
    elements, x_scale = quantize(x, group_size, most)
    codes = unpack_codes(packed).long().unflatten(1, (-1, group_size))
    sums = torch.einsum("tgk,rgk->gtr", elements, codes)
    assert int(sums.abs().max()) <= 8 * most * group_size
    total = torch.zeros(len(x), len(packed))
    for group in range(len(sums)):
        factor = scale[:, group].float() * x_scale[:, group].unsqueeze(1)  # rounded to float32
        total = (factor.double() * sums[group].float().double() + total.double()).float()
    return total


@each_path
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25, 250])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_the_bits_of_integer_sums(group_size: int, tokens: int, path: str) -> None:
    """One expert of weight 1, with gates so large that silu(gate) is gate: nothing but sums is computed."""
    inter, most = 3 * group_size, MOST[path]
    case = make_case(
        tokens=tokens,
        hidden=9 * group_size,
        inter=inter,
        experts=1,
        top_k=1,
        group_size=group_size,
        dtype=torch.float32,
        seed=tokens,
    )
    x = case.hidden_states.abs() + 0.5
    x[:, 0] *= 100  # groups of other scales
    w13 = case.w13_packed.clone()
    w13[:, :inter] |= -2004318072  # 0x88888888: gate's codes are 0..7
    w13_scale = case.w13_scale.clone()
    w13_scale[:, :inter] = case.w13_scale[:, :inter].abs() * 16 + 0.125
    w13_scale[:, :inter, 0] = 2.0**-5
    gate = multiply(x, w13[0, :inter], w13_scale[0, :inter], group_size, most)
    assert float(gate.min()) > 20  # 1 + exp(-20) is 1 in float32
    up = multiply(x, w13[0, inter:], w13_scale[0, inter:], group_size, most)
    expected = multiply(gate * up, case.w2_packed[0], case.w2_scale[0], group_size, most)
    weight, ids = torch.ones(tokens, 1), torch.zeros(tokens, 1, dtype=torch.int64)
    arguments = (x, w13, w13_scale, case.w2_packed, case.w2_scale, weight, ids)
    result = fused_experts(*arguments, group_size=group_size, path=path)
    assert torch.equal(result, expected)


@each_path
def test_ties_go_to_the_even_element(path: str) -> None:
    """Elements that lie midway between two integers, seen through a gate of one code."""
    x = torch.zeros(1, 32)
    most = MOST[path]
    x[0, 0] = most  # the scale is 1
    x[0, 1:9] = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5])
    elements, scale = quantize(x, 32, most)
    assert float(scale) == 1
    assert elements[0, 0, 1:9].tolist() == [0, 2, 2, 0, -2, -2, 126, -126]
    codes = torch.full((64, 32), 8)  # zeros
    codes[:32, 0] = 9  # gate: the largest, where silu(gate) is gate
    codes[32:] += torch.eye(32, dtype=torch.int64)
    down = codes[32:]
    shifts = torch.arange(0, 32, 4)

    def pack(nibbles: Tensor) -> Tensor:
        words = (nibbles.unflatten(1, (-1, 8)) << shifts).sum(2)
        return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).unsqueeze(0)

    one = torch.ones(1, 64, 1, dtype=torch.bfloat16)
    arguments = (x, pack(codes), one, pack(down), one[:, :32], torch.ones(1, 1), torch.zeros(1, 1).long())
    result = fused_experts(*arguments, group_size=32, path=path)
    # silu(gate) * up is that many times the elements, the largest of which is that: rounding again changes
    # nothing.
    assert torch.equal(result[0] / most, elements[0, 0].float())


@each_path
@pytest.mark.parametrize("value", [0.0, 2.0**-140, 2.0**-101])
def test_groups_of_almost_nothing_count_as_zero(value: float, path: str) -> None:
    case = make_case(tokens=2, dtype=torch.float32)
    case.hidden_states[1] = value
    case.topk_ids[:] = 0
    result = fused_experts(**vars(case), path=path)
    assert torch.equal(result[1], torch.zeros_like(result[1]))
    assert bool(result[0].isfinite().all()) and bool((result[0] != 0).any())


@pytest.mark.parametrize("tokens", [1, 2, 5, 11, 12, 16, 17, 33, 48, 100, 300])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_all_paths_of_sixteen_bits_give_the_same_bits(group_size: int, tokens: int) -> None:
    first, *others = [path for path in INT16 if path in PATHS] or [None]
    if not others:
        pytest.skip("this processor has one path of sixteen bits at most")
    case = vars(
        make_case(
            tokens=tokens,
            hidden=7 * group_size,
            inter=5 * group_size,
            experts=3,
            top_k=2,
            group_size=group_size,
            dtype=torch.float32,
        )
    )
    result = fused_experts(**case, path=first)
    for other in others:
        assert torch.equal(fused_experts(**case, path=other), result), other
