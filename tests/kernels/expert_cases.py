"""Random experts, routings, and what float32 and bfloat16 arithmetic may make of them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from moe4.kernels.reference import dequantize

U32 = 2.0**-24  # unit roundoff of float32
U16 = 2.0**-8  # unit roundoff of bfloat16
# What rounding to integers moves, of a group's largest magnitude: 1 / 254 or 1 / 65024, and what float32
# makes of the scale and the quotient.
INT16 = ("amx_int16", "avx512_int16", "avxvnni_int16", "avx2_int16", "neon_int16")
INTEGERS = {"avx512_vnni": 1 / 253, **dict.fromkeys(INT16, 1 / 64000)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """The arguments of `fused_experts`."""

    hidden_states: Tensor
    w13_packed: Tensor
    w13_scale: Tensor
    w2_packed: Tensor
    w2_scale: Tensor
    topk_weights: Tensor
    topk_ids: Tensor
    group_size: int


def make_case(
    *,
    tokens: int,
    hidden: int = 256,
    inter: int = 128,
    experts: int = 24,
    top_k: int = 4,
    group_size: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Case:
    """Make a case whose routing is ragged: repeated experts, -1, and expert 1 with no token."""
    g = torch.Generator().manual_seed(seed)

    def words(*shape: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, shape, generator=g, dtype=torch.int64).to(torch.int32)

    def scales(columns: int, *shape: int) -> Tensor:
        # Of either sign, some zero, of a size that keeps activations near 1.
        scale = torch.randn(*shape, columns // group_size, generator=g) / (4.6 * columns**0.5)
        scale[torch.rand(scale.shape, generator=g) < 0.05] = 0
        return scale.to(torch.bfloat16)

    ids = torch.randint(0, experts, (tokens, top_k), generator=g)
    ids[ids == 1] = -1
    if tokens > 2:
        ids[1] = ids[1, 0]
        ids[2] = -1
    return Case(
        hidden_states=torch.randn(tokens, hidden, generator=g).to(dtype),
        w13_packed=words(experts, 2 * inter, hidden // 8),
        w13_scale=scales(hidden, experts, 2 * inter),
        w2_packed=words(experts, hidden, inter // 8),
        w2_scale=scales(inter, experts, hidden),
        topk_weights=torch.randn(tokens, top_k, generator=g),
        topk_ids=ids,
        group_size=group_size,
    )


def weight_dtype(path: str) -> torch.dtype:
    """Return what `path` rounds the decoded weights to, scale * code."""
    return torch.bfloat16 if path == "avx512_bf16" else torch.float64


def rounding(values: Tensor, path: str, group_size: int) -> Tensor:
    """Return how far `path` may move each of the activations [tokens, columns] when it rounds them."""
    if path == "avx512_bf16":
        return U16 * values.abs()
    if path in INTEGERS:
        largest = values.abs().unflatten(1, (-1, group_size)).amax(2)
        return INTEGERS[path] * largest.repeat_interleave(group_size, 1) + 2.0**-100
    return torch.zeros_like(values)


def error_bound(case: Case, path: str, out: Tensor) -> Tensor:
    """Return how far each element of `path`'s result may lie from the float64 reference `out`.

    The worst case of standard rounding analysis, carried through the forward. A float32 dot product in which
    no term passes more than d roundings is within d * U32 * sum |w| |x|. Here a term passes at most nine
    within a line, the product with its scale, one addition a line (of at least 32 codes) and four over the
    lanes. In avx512_bf16 a "line" is a chunk of 1024 columns: 32 products of two terms in a lane, with two
    roundings each, and four additions over the lanes. In the paths of INTEGERS the sum of a group is exact,
    but for its conversion, and its scale is itself a rounded product. `out` has the
    weights that the path computes with (`weight_dtype`). |silu'| < 1.1. Some paths round x (avx512_bf16:
    unless it is bfloat16 already) and silu(gate) * up. Last, the result is rounded to the dtype of the
    output.
    """
    x = case.hidden_states.double()
    inter = case.w2_packed.shape[2] * 8
    group_size = case.group_size
    terms, line = (68, 1024) if path == "avx512_bf16" else (2, group_size) if path in INTEGERS else (16, 32)
    dot13, dot2 = ((terms + 2 + columns / line) * U32 for columns in (x.shape[1], inter))
    x_error = rounding(x, path, group_size)
    if path == "avx512_bf16" and case.hidden_states.dtype == torch.bfloat16:
        x_error = torch.zeros_like(x)
    # How far a product with a weight of 1 may be off: what x is off, and what the products and sums add.
    x_reach = x_error + dot13 * (x.abs() + x_error)
    bound = torch.zeros_like(x)
    magnitude = torch.zeros_like(x)
    for expert in range(case.w13_packed.shape[0]):
        token, slot = (case.topk_ids == expert).nonzero(as_tuple=True)
        if len(token) == 0:
            continue
        w13, w2 = (
            dequantize(packed[expert], scale[expert], group_size).to(weight_dtype(path)).double()
            for packed, scale in ((case.w13_packed, case.w13_scale), (case.w2_packed, case.w2_scale))
        )
        w2 = w2.abs()
        gate, up = (x[token] @ w13.T).split(inter, dim=1)
        gate_error, up_error = (x_reach[token] @ w13.abs().T).split(inter, dim=1)
        s = silu(gate).abs()
        s_error = 1.1 * gate_error + 8 * U32 * s
        act = s * up.abs()
        act_error = up.abs() * s_error + s * up_error + s_error * up_error + U32 * act
        act_error = act_error + rounding(act + act_error, path, group_size)
        weight = case.topk_weights[token, slot].double().abs().unsqueeze(-1)
        y = act @ w2.T
        bound.index_add_(0, token, weight * (act_error @ w2.T + dot2 * ((act + act_error) @ w2.T)))
        magnitude.index_add_(0, token, weight * y)
    bound += (case.topk_ids.shape[1] + 1) * U32 * magnitude
    unit = {torch.bfloat16: U16, torch.float16: 2.0**-11, torch.float32: U32}[case.hidden_states.dtype]
    return bound + unit * (out.abs() + bound) + 2.0**-25  # the last: half a unit of float16's subnormals
