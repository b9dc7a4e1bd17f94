"""Passes over whole matrices in one launch: the permuted Hessian, and numbers as sums of two in float16.

A float32 number times a power of two that keeps it in range is, to 22 bits, the sum of two in float16,
high + low. Products of float16 are exact in float32, so three products on the matrix units, high high +
high low + low high, give one of float32 numbers to about 2^-22 of the operands' size, several times as fast
as float32 arithmetic does; one product of the high parts gives it to 2^-11, as TF32 does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe4.gptq.gpu.rounding import to_operand

SPLIT_ROWS, SPLIT_COLUMNS = 8, 256
PERMUTED_COLUMNS = 1024


def power_of_two_below(x: Tensor) -> Tensor:
    """Return the largest powers of two not above x, float32, positive and finite."""
    return (x.view(torch.int32) & 0x7F800000).view(torch.float32)


@triton.jit
def _split_kernel(
    x,
    added,
    scale,
    high,
    low,
    num_rows,
    num_columns,
    x_batch,
    x_row,
    added_batch,
    out_batch,
    out_row,
    HAS_ADDED: tl.constexpr,
    HAS_LOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    value = tl.load(x + batch * x_batch + rows[:, None] * x_row + columns[None, :], mask=mask, other=0.0)
    if HAS_ADDED:
        more = tl.load(added + batch * added_batch + rows, mask=rows < num_rows, other=0.0)
        value += tl.where(rows[:, None] == columns[None, :], more[:, None], 0.0)
    value *= tl.load(scale + batch)
    place = batch * out_batch + rows[:, None] * out_row + columns[None, :]
    rounded = to_operand(value, high)
    tl.store(high + place, rounded, mask=mask)
    if HAS_LOW:
        tl.store(low + place, to_operand(value - rounded.to(tl.float32), low), mask=mask)


def split(
    x: Tensor, scale: Tensor, high: Tensor, low: Tensor | None = None, added: Tensor | None = None
) -> None:
    """Put x `scale`, x float32 [batch, rows, columns] and scale [batch], into the operands high and low.

    `added` [batch, rows] goes to the diagonal first. Strides between rows and matrices are free, those of
    high and low alike.
    """
    batch, num_rows, num_columns = x.shape
    assert high.shape == x.shape
    assert x.stride(2) == high.stride(2) == 1
    assert low is None or (low.stride() == high.stride() and low.shape == high.shape)
    assert added is None or added.stride(1) == 1
    grid = (triton.cdiv(num_columns, SPLIT_COLUMNS), triton.cdiv(num_rows, SPLIT_ROWS), batch)
    _split_kernel[grid](
        x,
        added if added is not None else x,
        scale,
        high,
        low if low is not None else high,
        num_rows,
        num_columns,
        x.stride(0),
        x.stride(1),
        added.stride(0) if added is not None else 0,
        high.stride(0),
        high.stride(1),
        HAS_ADDED=added is not None,
        HAS_LOW=low is not None,
        ROWS=SPLIT_ROWS,
        COLUMNS=SPLIT_COLUMNS,
    )


@triton.jit
def _permute_kernel(H, order, diagonal, scale, A, size, COLUMNS: tl.constexpr):
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0)
    order += batch * size
    H += batch * size * size + tl.load(order + row) * size
    A += batch * size * size + row.to(tl.int64) * size
    own = tl.load(diagonal + batch * size + row)
    scale = tl.load(scale + batch)
    for start in range(0, size, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        above = (columns > row) & (columns < size)
        x = tl.load(H + tl.load(order + columns, mask=above, other=0), mask=above, other=0.0)
        x = tl.where(columns == row, own, x)
        tl.store(A + columns, x * scale, mask=columns < size)


def permuted(H: Tensor, order: Tensor, diagonal: Tensor, scale: Tensor) -> Tensor:
    """Return the upper triangles of H [batch, n, n] in `order` [batch, n] times `scale` [batch]; zeros below.

    `diagonal` [batch, n], in the new order, stands in for H's.
    """
    batch, size, _ = H.shape
    assert H.is_contiguous() and order.is_contiguous() and diagonal.is_contiguous()
    assert order.shape == diagonal.shape == (batch, size) and order.dtype == torch.int64
    A = torch.empty_like(H)
    _permute_kernel[(size, batch)](H, order, diagonal, scale, A, size, COLUMNS=PERMUTED_COLUMNS)
    return A
