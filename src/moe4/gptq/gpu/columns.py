"""The loops over columns that no matrix product can do, for a batch of matrices of one shape.

Everything is in transposed layout, a column contiguous, with the batch in front:

W        [batch, in, out]        weights
C        [batch, in, out]        codes, int8
S        [batch, groups, out]    scales
R        [batch, in, in]         upper factor of the damped H in permuted order; an operand
H        [batch, in, in]         damped Hessian; an operand
missed   [batch, columns, out]   what other columns make a block's answer for, float32
lost     [batch, in, out]        d = w - s c of a column; an operand
change   [batch, in, out]        by how much a sweep of descent changed d; an operand

An *operand* is what matrix products take: float16, times a power of two for each matrix that keeps it in
range, or float32. `g` [batch] is that of `lost` and `change`; `missed` has the scale of R or H times `g`.

A program takes ROWS rows of `out` through all columns of a block. Sixteen columns at a time lie in its
registers; what the columns before those give comes in one product. The same rules as `gptq/columns.py` and
`gptq/descent.py`; sums in another order.

`TRITON_INTERPRET=1` in the environment before the first import of Triton runs this on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe4.gptq.gpu.rounding import to_bf16_grid, to_code, to_operand

MAX_COLUMNS = 128
NEAR = 16  # columns in registers
ROWS, WARPS = 32, 1
REFIT_ROWS, REFIT_WARPS = 32, 4
LARGEST_STEP = tl.constexpr(2.0)  # as in `gptq/descent.py`


@triton.jit
def _pick(x, j: tl.constexpr, NEAR: tl.constexpr):
    """Return row j of x [NEAR, rows], by a maximum of its bits: the compiler sees that no other is read."""
    bits = tl.where((tl.arange(0, NEAR) == j)[:, None], x.to(tl.int32, bitcast=True), -2147483648)
    return tl.max(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def _add_earlier(
    missed,
    factor,
    factor_row,
    left,
    num_rows,
    left_row,
    rows,
    here,
    first,
    NEAR: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add factor[:first, first : first + NEAR]^T left[:first] to missed[first : first + NEAR].

    Through memory: a product leaves its sums where no thread has a whole column of them.
    """
    before = tl.arange(0, COLUMNS)
    ours = first + tl.arange(0, NEAR)
    a = tl.load(
        factor + before[None, :] * factor_row + ours[:, None], mask=(before < first)[None, :], other=0.0
    )
    b = tl.load(
        left + before[:, None] * left_row + rows[None, :],
        mask=(before < first)[:, None] & here[None, :],
        other=0.0,
    )
    place = missed + ours[:, None] * num_rows + rows[None, :]
    m = tl.load(place, mask=here[None, :], other=0.0)
    tl.store(place, tl.dot(a, b, m, input_precision="ieee"), mask=here[None, :])
    tl.debug_barrier()


@triton.jit
def _round_near(w, s, missed, factor, factor_row, g, NEAR: tl.constexpr):
    """Round NEAR columns one after another; `factor` points to their block on the diagonal.

    Returns codes, d, and what was left of each target times the pivot: [NEAR, rows] each.
    """
    columns = tl.arange(0, NEAR)
    inverse = 1.0 / s
    codes, d, left = w, w, w
    for j in tl.static_range(NEAR):
        row = tl.load(factor + j * factor_row + columns).to(tl.float32)
        pivot = tl.load(factor + j * factor_row + j).to(tl.float32)
        w_j, s_j = _pick(w, j, NEAR), _pick(s, j, NEAR)
        x = w_j + _pick(missed, j, NEAR) * (1.0 / (pivot * g))
        code = to_code(x * _pick(inverse, j, NEAR))
        d_j = w_j - code * s_j
        missed += row[:, None] * (d_j * g)[None, :]
        own = (columns == j)[:, None]
        codes = tl.where(own, code[None, :], codes)
        d = tl.where(own, d_j[None, :], d)
        left = tl.where(own, ((x - code * s_j) * pivot)[None, :], left)
    return codes, d, left


@triton.jit(do_not_specialize=["num_rows"])
def _solve_kernel(
    W,
    S,
    order,
    R,
    missed,
    codes,
    lost,
    left,
    g,
    left_scale,
    num_columns,
    num_rows,
    group_size,
    W_batch,
    S_batch,
    order_batch,
    R_batch,
    R_row,
    missed_batch,
    lost_batch,
    lost_row,
    NEAR: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < num_rows
    W += batch * W_batch
    codes += batch * W_batch
    S += batch * S_batch
    order += batch * order_batch
    R += batch * R_batch
    missed += batch * missed_batch
    lost += batch * lost_batch
    left += batch * lost_batch
    g, left_scale = tl.load(g + batch), tl.load(left_scale + batch)
    for first in range(0, num_columns, NEAR):
        near = first + tl.arange(0, NEAR)
        column = tl.load(order + near)
        place = column[:, None] * num_rows + rows[None, :]
        w = tl.load(W + place, mask=here[None, :], other=0.0)
        s = tl.load(
            S + (column // group_size)[:, None] * num_rows + rows[None, :], mask=here[None, :], other=1.0
        )
        there = near[:, None] * num_rows + rows[None, :]
        if first > 0:
            _add_earlier(missed, R, R_row, lost, num_rows, lost_row, rows, here, first, NEAR, COLUMNS)
        m = tl.load(missed + there, mask=here[None, :], other=0.0)
        code, d, rest = _round_near(w, s, m, R + first * R_row + first, R_row, g, NEAR)
        tl.store(codes + place, code.to(tl.int8), mask=here[None, :])
        tl.store(lost + there, to_operand(d * g, lost), mask=here[None, :])
        tl.store(left + there, to_operand(rest * left_scale, left), mask=here[None, :])
        tl.debug_barrier()  # what was stored is read by other threads in the next round


def solve_block(
    W: Tensor,
    S: Tensor,
    order: Tensor,
    R: Tensor,
    missed: Tensor,
    codes: Tensor,
    lost: Tensor,
    left: Tensor,
    g: Tensor,
    left_scale: Tensor,
) -> None:
    """Round the columns `order` [batch, columns] of every W one after another.

    R [batch, columns, columns] is the block on the factor's diagonal, `missed` [batch, columns, out] what the
    columns before the block made these miss; it is overwritten. Writes `codes` [batch, in, out] at the
    columns' own places, and the block's `lost` and `left` [batch, columns, out], operands: d times `g`, and
    R^T D, R as given, times `left_scale`. `columns` is a multiple of 16 and at most MAX_COLUMNS.
    """
    batch, num_columns = order.shape
    num_rows = W.shape[2]
    assert W.is_contiguous() and codes.is_contiguous() and S.is_contiguous()
    assert codes.shape == W.shape and codes.dtype == torch.int8 and order.dtype == torch.int64
    assert missed.shape == lost.shape == left.shape == (batch, num_columns, num_rows)
    assert missed.dtype == torch.float32 and lost.dtype == left.dtype == R.dtype
    assert 0 < num_columns <= MAX_COLUMNS and num_columns % NEAR == 0
    assert R.shape == (batch, num_columns, num_columns)
    assert all(t.stride()[1:] == (num_rows, 1) for t in (missed, lost, left))
    assert lost.stride(0) == left.stride(0) and R.stride(2) == order.stride(1) == 1
    _solve_kernel[(triton.cdiv(num_rows, ROWS), batch)](
        W,
        S,
        order,
        R,
        missed,
        codes,
        lost,
        left,
        g,
        left_scale,
        num_columns,
        num_rows,
        W.shape[1] // S.shape[1],
        W.stride(0),
        S.stride(0),
        order.stride(0),
        R.stride(0),
        R.stride(1),
        missed.stride(0),
        lost.stride(0),
        lost.stride(1),
        NEAR=NEAR,
        COLUMNS=triton.next_power_of_2(num_columns),
        ROWS=ROWS,
        num_warps=WARPS,
        num_stages=1,  # a load must not be moved before the last round's stores
    )


@triton.jit
def _refit_kernel(
    H,
    G,
    codes,
    S,
    was,
    missed,
    g,
    num_rows,
    H_batch,
    H_row,
    G_batch,
    codes_batch,
    S_batch,
    missed_batch,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < num_rows
    columns = tl.arange(0, GROUP)
    place = columns[:, None] * num_rows + rows[None, :]
    mask = here[None, :] & (columns >= 0)[:, None]
    H += batch * H_batch
    S += batch * S_batch + rows
    c = tl.load(codes + batch * codes_batch + place, mask=mask, other=0)
    later = tl.load(H + columns[:, None] * H_row + columns[None, :])
    later = tl.where(columns[None, :] > columns[:, None], later, 0.0).to(H.dtype.element_ty)
    later_c = tl.dot(later, c.to(H.dtype.element_ty), input_precision="ieee")
    c = c.to(tl.float32)
    diagonal = tl.load(H + columns * (H_row + 1)).to(tl.float32)
    gradient = tl.load(G + batch * G_batch + place, mask=mask, other=0.0)
    g = tl.load(g + batch)
    curvature = tl.sum(c * (2.0 * later_c + diagonal[:, None] * c), 0) * g
    slope = tl.sum(c * gradient, 0)
    s = tl.load(S, mask=here, other=1.0)
    new = to_bf16_grid(s + slope / tl.maximum(curvature, 1.1754944e-38))
    step = new - s
    near = (new / s > 1.0 / LARGEST_STEP) & (new / s < LARGEST_STEP)
    new = tl.where(near & (step * (step * curvature - 2.0 * slope) < 0.0), new, s)
    tl.store(was + batch * num_rows + rows, s, mask=here)
    tl.store(S, new, mask=here)
    gradient += ((s - new) * g)[None, :] * later_c
    tl.store(missed + batch * missed_batch + place, gradient, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _descend_kernel(
    H,
    missed,
    codes,
    S,
    was,
    change,
    g,
    num_rows,
    H_batch,
    H_row,
    missed_batch,
    codes_batch,
    S_batch,
    change_row,
    NEAR: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < num_rows
    H += batch * H_batch
    missed += batch * missed_batch
    codes += batch * codes_batch
    change += batch * codes_batch
    g = tl.load(g + batch)
    s = tl.load(S + batch * S_batch + rows, mask=here, other=1.0)
    old = tl.load(was + batch * num_rows + rows, mask=here, other=1.0)
    for first in range(0, GROUP, NEAR):
        near = first + tl.arange(0, NEAR)
        place = near[:, None] * num_rows + rows[None, :]
        # w and the old loss appear only as their difference, the weight that the old code stands for.
        served = tl.load(codes + place, mask=here[None, :], other=0).to(tl.float32) * old[None, :]
        if first > 0:
            _add_earlier(missed, H, H_row, change, num_rows, change_row, rows, here, first, NEAR, GROUP)
        m = tl.load(missed + place, mask=here[None, :], other=0.0)
        scale = tl.broadcast_to(s[None, :], served.shape)
        code, d, _ = _round_near(served, scale, m, H + first * H_row + first, H_row, g, NEAR)
        tl.store(codes + place, code.to(tl.int8), mask=here[None, :])
        tl.store(change + place, to_operand(d * g, change), mask=here[None, :])
        tl.debug_barrier()


def descend_group(
    H: Tensor, G: Tensor, codes: Tensor, s: Tensor, change: Tensor, g: Tensor, was: Tensor, missed: Tensor
) -> None:
    """Move one group's scales, then its codes, to the least loss with all else fixed.

    H [batch, group, group], the block on the diagonal, and G [batch, group, out], the gradient H D of
    the group, in the scale of H times `g`. Writes codes [batch, group, out], s [batch, out], and change
    [batch, group, out]: by how much d changed, times `g`. `was` [batch, out] and `missed`
    [batch, group, out], float32, are room to work in.
    """
    batch, group_size, num_rows = G.shape
    assert group_size in (16, 32, 64, 128)
    assert H.shape == (batch, group_size, group_size) and H.stride(2) == 1
    assert codes.shape == change.shape == missed.shape == G.shape
    assert s.shape == was.shape == (batch, num_rows) and s.stride(1) == 1
    assert was.is_contiguous() and missed.is_contiguous()
    assert all(t.stride()[1:] == (num_rows, 1) for t in (G, codes, change))
    assert codes.stride(0) == change.stride(0) and change.dtype == H.dtype
    _refit_kernel[(triton.cdiv(num_rows, REFIT_ROWS), batch)](
        H,
        G,
        codes,
        s,
        was,
        missed,
        g,
        num_rows,
        H.stride(0),
        H.stride(1),
        G.stride(0),
        codes.stride(0),
        s.stride(0),
        missed.stride(0),
        GROUP=group_size,
        ROWS=REFIT_ROWS,
        num_warps=REFIT_WARPS,
        num_stages=1,
    )
    _descend_kernel[(triton.cdiv(num_rows, ROWS), batch)](
        H,
        missed,
        codes,
        s,
        was,
        change,
        g,
        num_rows,
        H.stride(0),
        H.stride(1),
        missed.stride(0),
        codes.stride(0),
        s.stride(0),
        change.stride(1),
        NEAR=NEAR,
        GROUP=group_size,
        ROWS=ROWS,
        num_warps=WARPS,
        num_stages=1,
    )
