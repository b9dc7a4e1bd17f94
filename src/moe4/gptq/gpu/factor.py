"""Upper factors of a batch of matrices, A = R R^T, by panels of columns from the last to the first.

A panel takes what all later columns give in products of float16 halves, three for one of float32 numbers
(`halves.py`), or of float32. Within a panel blocks of columns take turns in float32; the block on the
diagonal and its inverse are found by one program for each matrix.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe4.gptq.gpu.halves import split
from moe4.gptq.gpu.products import add_product_

PANEL_COLUMNS = 512
BLOCK_COLUMNS = 64
SUM_COLUMNS = 2048
"""Of a product on the matrix units, whose sums are cut and not rounded: partial sums are added in float32."""
WARPS = 4


@triton.jit
def _factor_kernel(A, inverse, fine, size, A_batch, A_row, COLUMNS: tl.constexpr):
    batch = tl.program_id(0).to(tl.int64)
    A += batch * A_batch
    inverse += batch * size * size
    i = tl.arange(0, COLUMNS)
    inside = (i < size)[:, None] & (i < size)[None, :]
    rest = tl.load(A + i[:, None] * A_row + i[None, :], mask=inside, other=0.0)
    X = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    good = tl.load(fine + batch)
    for step in range(size):
        j = size - 1 - step
        column = tl.sum(tl.where(i[None, :] == j, rest, 0.0), 1)
        column = tl.where(i <= j, column, 0.0)
        square = tl.sum(tl.where(i == j, column, 0.0), 0)
        good = tl.where(square > 0, good, 0).to(tl.int8)
        # Zeros where it has none: nothing overflows.
        inverted = tl.where(square > 0, 1.0 / tl.sqrt_rn(tl.where(square > 0, square, 1.0)), 0.0)
        column = column * inverted
        tl.store(A + i * A_row + j, column, mask=i < size)
        rest -= column[:, None] * column[None, :]
        x = tl.sum(tl.where(i[:, None] == j, X, 0.0), 0) * inverted
        X = tl.where(i[:, None] == j, x[None, :], X - tl.where(i < j, column, 0.0)[:, None] * x[None, :])
    tl.store(inverse + i[:, None] * size + i[None, :], X, mask=inside)
    tl.store(fine + batch, good)


def factor_block_(A: Tensor, fine: Tensor) -> Tensor:
    """Put R, A = R R^T, into A [batch, n, n], of which the upper triangle is read; return R's inverse.

    `fine` [batch], int8, becomes 0 where A has no factor.
    """
    batch, size, _ = A.shape
    assert A.stride(2) == 1
    assert fine.dtype == torch.int8
    inverse = torch.empty(A.shape, device=A.device, dtype=torch.float32)
    columns = triton.next_power_of_2(size)
    _factor_kernel[(batch,)](
        A, inverse, fine, size, A.stride(0), A.stride(1), COLUMNS=columns, num_warps=WARPS
    )
    return inverse


def factor_block_in_torch_(A: Tensor, fine: Tensor) -> Tensor:
    """Do what `factor_block_` does with torch's batched functions."""
    L, info = torch.linalg.cholesky_ex(A.flip(1, 2))
    fine &= info == 0
    eye = torch.eye(A.shape[1], device=A.device, dtype=torch.float32).expand_as(L)
    A.copy_(L.flip(1, 2))
    inverse: Tensor = torch.linalg.solve_triangular(L, eye, upper=False)
    return inverse.flip(1, 2)


FactorBlock = Callable[[Tensor, Tensor], Tensor]


def upper_factor_(
    A: Tensor, dtype: torch.dtype, factor_block: FactorBlock = factor_block_
) -> tuple[Tensor, Tensor, Tensor]:
    """Return R, an operand [batch, n, n] in `dtype`, its diagonal, float32, and which A have a factor, int8.

    A, float32 [batch, n, n], has zeros below the diagonal, and is overwritten; R may be A. Entries of R are
    at most 2^14. R is not written below the diagonal but for the panels on it, which have zeros there.
    Peak memory beside A: A once more, for float16.
    """
    batch, size, _ = A.shape
    halves = dtype != torch.float32
    R, low = (torch.empty(A.shape, dtype=dtype, device=A.device) if halves else A for _ in range(2))
    one = torch.ones(batch, device=A.device, dtype=torch.float32)
    fine = torch.ones(batch, dtype=torch.int8, device=A.device)
    for start, stop in reversed(spans(0, size, PANEL_COLUMNS)):
        panel = A[:, :stop, start:stop]
        for first, last in spans(stop, size, SUM_COLUMNS):
            above, own = (slice(stop), slice(first, last)), (slice(start, stop), slice(first, last))
            if halves:
                add_product_(panel, low[:, *above], R[:, *own].mT, alpha=-1)
                add_product_(panel, R[:, *above], low[:, *own].mT, alpha=-1)
            add_product_(panel, R[:, *above], R[:, *own].mT, alpha=-1)
        _factor_panel(A, start, stop, fine, factor_block)
        A[:, start:stop, start:stop].triu_()  # the products wrote below the diagonal's blocks
        if halves:
            split(panel, one, R[:, :stop, start:stop], low[:, :stop, start:stop])
    return R, A.diagonal(dim1=1, dim2=2).contiguous(), fine


def _factor_panel(A: Tensor, start: int, stop: int, fine: Tensor, factor_block: FactorBlock) -> None:
    for first, last in reversed(spans(start, stop, BLOCK_COLUMNS)):
        block = A[:, :last, first:last]
        if last < stop:
            block.baddbmm_(A[:, :last, last:stop], A[:, first:last, last:stop].mT, alpha=-1)
        inverse = factor_block(A[:, first:last, first:last], fine)
        if first:
            A[:, :first, first:last] = torch.bmm(A[:, :first, first:last], inverse.mT)


def spans(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Return where pieces of `step` columns begin and end."""
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]
