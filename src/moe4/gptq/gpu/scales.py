"""The search for each group's scale, in Triton: the rules of `gptq/grid.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe4.gptq.gpu.rounding import to_bf16_grid, to_code

ROWS, WARPS = 32, 4


@triton.jit
def _group_error(w, weight, scale):
    # By the reciprocal: only what is halfway between two codes but for rounding may differ, at no loss.
    difference = to_code(w * (1.0 / scale)[None, :]) * scale[None, :] - w
    return tl.sum(difference * difference * weight[:, None], 0)


@triton.jit(do_not_specialize=["num_groups"])
def _search_kernel(
    W,
    weight,
    factors,
    best,
    plain,
    num_rows,
    num_groups,
    num_factors,
    SIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < num_rows
    columns = group * GROUP + tl.arange(0, GROUP)
    num_columns = num_groups * GROUP
    W += batch * num_columns * num_rows
    w = tl.load(W + columns[:, None].to(tl.int64) * num_rows + rows[None, :], mask=here[None, :], other=0.0)
    importance = tl.load(weight + batch * num_columns + columns)
    low, high = tl.min(w, 0), tl.max(w, 0)
    if SIGNED:
        full = tl.where(tl.abs(high) > tl.abs(low), -high / 8.0, -low / 8.0)
    else:
        full = tl.maximum(tl.div_rn(high, tl.full(high.shape, 7.0, tl.float32)), -low / 8.0)
    peak = tl.maximum(tl.abs(low), tl.abs(high))
    scale = to_bf16_grid(tl.div_rn(peak, tl.full(peak.shape, 7.5, tl.float32)))
    place = (batch * num_groups + group) * num_rows + rows
    tl.store(plain + place, scale, mask=here)
    least = _group_error(w, importance, scale)
    for number in range(num_factors):
        tried = to_bf16_grid(full * tl.load(factors + number))
        error = _group_error(w, importance, tried)
        better = error < least
        scale = tl.where(better, tried, scale)
        least = tl.where(better, error, least)
    tl.store(best + place, scale, mask=here)


def search_scales(
    W: Tensor, importance: Tensor, group_size: int, factors: Tensor, *, signed: bool
) -> tuple[Tensor, Tensor]:
    """Return the scales with the least error weighted by `importance`, and those of plain round to nearest.

    W, float32 [batch, in, out]; importance, float32 [batch, in]; factors of the full range to try, float32
    [n]; both results float32 [batch, groups, out] that bf16 holds. The rules are `gptq/grid.py`'s.
    """
    batch, num_columns, num_rows = W.shape
    num_groups = num_columns // group_size
    assert W.is_contiguous()
    assert importance.is_contiguous()
    assert importance.shape == (batch, num_columns)
    best = W.new_empty(batch, num_groups, num_rows)
    plain = torch.empty_like(best)
    _search_kernel[(triton.cdiv(num_rows, ROWS), num_groups, batch)](
        W,
        importance,
        factors,
        best,
        plain,
        num_rows,
        num_groups,
        len(factors),
        SIGNED=signed,
        GROUP=group_size,
        ROWS=ROWS,
        num_warps=WARPS,
    )
    return best, plain
