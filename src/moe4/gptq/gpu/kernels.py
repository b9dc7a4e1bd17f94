"""The loops that no matrix product can do, in Triton, for a batch of matrices of one shape.

Everything is in transposed layout, a column contiguous, as in `gptq/columns.py`, with the batch in front:

D       [batch, columns, out]     in: the weights w; out: what rounding left, d = w - Q(w)
missed  [batch, columns, out]     what the columns before the block make these answer for, sum_i d_i R_ij
codes   [batch, columns, out]     int8, written
S       [batch, groups, out]      scales; `groups` [batch, columns] says which of them a column takes
R       [batch, columns, columns] the block on the diagonal of the upper factor, H = R R^T

One launch solves a block. A program takes some rows of `out` through all columns of its matrix' block: what
they have missed stays in registers, and each column's row of R, which all programs of a matrix share, in the
cache next to them. The same rules as `csrc/loops.h`; sums in another order.

`TRITON_INTERPRET=1` in the environment before the first import of Triton runs this on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_COLUMNS = 128
SMALLEST_SCALE = tl.constexpr(2.0**-120)  # as in `gptq/grid.py`
SOLVE_ROWS, SOLVE_WARPS = 32, 1
SEARCH_ROWS, SEARCH_WARPS = 32, 4


@triton.jit
def _to_code(x):
    """Nearest of -8 .. 7, halves to even: between these the sum with 1.5 * 2^23 keeps no fraction."""
    x = tl.minimum(tl.maximum(x, -8.0), 7.0)
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _to_bf16_grid(scale):
    """To bf16, halves to even, and away from zero."""
    bits = scale.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    rounded = bits.to(tl.float32, bitcast=True)
    return tl.where(tl.abs(rounded) < SMALLEST_SCALE, SMALLEST_SCALE, rounded)


@triton.jit
def _solve_kernel(
    D,
    missed,
    codes,
    S,
    groups,
    R,
    num_columns,
    num_rows,
    D_batch,
    missed_batch,
    codes_batch,
    S_batch,
    groups_batch,
    R_batch,
    R_row,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < num_rows
    columns = tl.arange(0, COLUMNS)
    D += batch * D_batch + rows
    codes += batch * codes_batch + rows
    S += batch * S_batch + rows
    groups += batch * groups_batch
    R += batch * R_batch
    there = (columns < num_columns)[:, None] & here[None, :]
    left = tl.load(
        missed + batch * missed_batch + columns[:, None] * num_rows + rows[None, :], mask=there, other=0.0
    )
    # A column's inputs are asked for one column ahead, so that the loads do not wait for the stores.
    w = tl.load(D, mask=here, other=0.0)
    s = tl.load(S + tl.load(groups) * num_rows, mask=here, other=1.0)
    factor = tl.load(R + columns, mask=columns < num_columns, other=0.0)
    pivot = tl.load(R)
    for j in range(num_columns):
        step = tl.minimum(j + 1, num_columns - 1) - j  # 0 at the last
        next_w = tl.load(D + step * num_rows, mask=here, other=0.0)
        next_s = tl.load(S + tl.load(groups + step) * num_rows, mask=here, other=1.0)
        next_factor = tl.load(R + step * R_row + columns, mask=columns < num_columns, other=0.0)
        next_pivot = tl.load(R + step * R_row + j + step)
        own = tl.sum(tl.where((columns == j)[:, None], left, 0.0), 0)
        code = _to_code(tl.div_rn(w + tl.div_rn(own, tl.broadcast_to(pivot, own.shape)), s))
        d = w - code * s
        tl.store(D, d, mask=here)
        tl.store(codes, code.to(tl.int8), mask=here)
        left += factor[:, None] * d[None, :]
        D += num_rows
        codes += num_rows
        groups += 1
        R += R_row
        w, s, factor, pivot = next_w, next_s, next_factor, next_pivot


def solve_block(D: Tensor, missed: Tensor, codes: Tensor, S: Tensor, groups: Tensor, R: Tensor) -> None:
    """Round the columns of every matrix' block one after another. Writes `D` and `codes`.

    Views are fine where a row of `out` is contiguous and columns follow each other; at most MAX_COLUMNS.
    """
    batch, num_columns, num_rows = D.shape
    assert 0 < num_columns <= MAX_COLUMNS
    assert missed.shape == codes.shape == D.shape
    assert S.shape[::2] == (batch, num_rows)
    assert groups.shape == (batch, num_columns)
    assert R.shape == (batch, num_columns, num_columns)
    assert all(t.dtype == torch.float32 for t in (D, missed, S, R))
    assert (codes.dtype, groups.dtype) == (torch.int8, torch.int32)
    assert all(t.stride()[1:] == (num_rows, 1) for t in (D, missed, codes, S))
    assert R.stride(2) == groups.stride(1) == 1
    _solve_kernel[(triton.cdiv(num_rows, SOLVE_ROWS), batch)](
        D,
        missed,
        codes,
        S,
        groups,
        R,
        num_columns,
        num_rows,
        D.stride(0),
        missed.stride(0),
        codes.stride(0),
        S.stride(0),
        groups.stride(0),
        R.stride(0),
        R.stride(1),
        COLUMNS=triton.next_power_of_2(num_columns),
        ROWS=SOLVE_ROWS,
        num_warps=SOLVE_WARPS,
    )


@triton.jit
def _group_error(w, weight, scale):
    difference = _to_code(tl.div_rn(w, tl.broadcast_to(scale[None, :], w.shape))) * scale[None, :] - w
    return tl.sum(difference * difference * weight[:, None], 0)


@triton.jit
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
    scale = _to_bf16_grid(tl.div_rn(peak, tl.full(peak.shape, 7.5, tl.float32)))
    place = (batch * num_groups + group) * num_rows + rows
    tl.store(plain + place, scale, mask=here)
    least = _group_error(w, importance, scale)
    for number in range(num_factors):
        tried = _to_bf16_grid(full * tl.load(factors + number))
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
    _search_kernel[(triton.cdiv(num_rows, SEARCH_ROWS), num_groups, batch)](
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
        ROWS=SEARCH_ROWS,
        num_warps=SEARCH_WARPS,
    )
    return best, plain
