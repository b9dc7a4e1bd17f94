"""Upper factors of a batch of matrices, A = R R^T, by panels of columns from the last to the first.

A panel takes what all later columns give in products of float16 halves, three for one of float32 numbers
(`halves.py`), or of float32. Within a panel blocks of columns take turns in float32; the block on the diagonal and its
inverse are found by one program for each matrix.
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
def _factor_kernel(A, inverse, size, A_batch, A_row, COLUMNS: tl.constexpr):
    batch = tl.program_id(0).to(tl.int64)
    A += batch * A_batch
    inverse += batch * size * size
    i = tl.arange(0, COLUMNS)
    inside = (i < size)[:, None] & (i < size)[None, :]
    diagonal = i[:, None] == i[None, :]
    rest = tl.load(A + i[:, None] * A_row + i[None, :], mask=inside, other=0.0)
    rest = tl.where(inside, rest, diagonal.to(tl.float32))
    X = diagonal.to(tl.float32)
    for step in range(COLUMNS):
        j = COLUMNS - 1 - step
        column = tl.sum(tl.where(i[None, :] == j, rest, 0.0), 1)
        column = tl.where(i <= j, column, 0.0)
        root = tl.sqrt_rn(tl.sum(tl.where(i == j, column, 0.0), 0))
        column = column * (1.0 / root)
        tl.store(A + i * A_row + j, column, mask=(i < size) & (j < size))
        rest -= column[:, None] * column[None, :]
        x = tl.sum(tl.where(i[:, None] == j, X, 0.0), 0) * (1.0 / root)
        X = tl.where(i[:, None] == j, x[None, :], X - tl.where(i < j, column, 0.0)[:, None] * x[None, :])
    tl.store(inverse + i[:, None] * size + i[None, :], X, mask=inside)


def factor_block_(A: Tensor) -> Tensor:
    """Put R, A = R R^T, into A [batch, n, n], of which the upper triangle is read; return R's inverse.

    What does not factor becomes NaN.
    """
    batch, size, _ = A.shape
    assert A.stride(2) == 1
    inverse = torch.empty(A.shape, device=A.device)
    _factor_kernel[(batch,)](
        A, inverse, size, A.stride(0), A.stride(1), COLUMNS=triton.next_power_of_2(size), num_warps=WARPS
    )
    return inverse


def factor_block_in_torch_(A: Tensor) -> Tensor:
    """Do what `factor_block_` does with torch's batched functions."""
    backwards = A.flip(1, 2)
    L, info = torch.linalg.cholesky_ex(backwards)
    L = torch.where((info == 0)[:, None, None], L, float("nan"))
    eye = torch.eye(A.shape[1], device=A.device).expand_as(L)
    A.copy_(L.flip(1, 2))
    return torch.linalg.solve_triangular(L, eye, upper=False).flip(1, 2)


def upper_factor_(
    A: Tensor, dtype: torch.dtype, factor_block: Callable[[Tensor], Tensor] = factor_block_
) -> tuple[Tensor, Tensor]:
    """Return (R, an operand [batch, n, n] in `dtype`; its diagonal, float32 [batch, n]), NaN if A has no factor.

    A, float32 [batch, n, n], has zeros below the diagonal, and is overwritten; R may be A. Entries of R are at most
    2^14. R is not written below the diagonal but for the panels on it, which have zeros there. Peak memory beside A: A
    once more, for float16.
    """
    batch, size, _ = A.shape
    halves = dtype != torch.float32
    R, low = (torch.empty(A.shape, dtype=dtype, device=A.device) if halves else A for _ in range(2))
    one = torch.ones(batch, device=A.device)
    for start, stop in reversed(spans(0, size, PANEL_COLUMNS)):
        panel = A[:, :stop, start:stop]
        for first, last in spans(stop, size, SUM_COLUMNS):
            above, own = (slice(stop), slice(first, last)), (slice(start, stop), slice(first, last))
            if halves:
                add_product_(panel, low[:, *above], R[:, *own].mT, alpha=-1)
                add_product_(panel, R[:, *above], low[:, *own].mT, alpha=-1)
            add_product_(panel, R[:, *above], R[:, *own].mT, alpha=-1)
        _factor_panel(A, start, stop, factor_block)
        if halves:
            split(panel, one, R[:, :stop, start:stop], low[:, :stop, start:stop])
    return R, A.diagonal(dim1=1, dim2=2).contiguous()


def _factor_panel(A: Tensor, start: int, stop: int, factor_block: Callable[[Tensor], Tensor]) -> None:
    for first, last in reversed(spans(start, stop, BLOCK_COLUMNS)):
        block = A[:, :last, first:last]
        if last < stop:
            block.baddbmm_(A[:, :last, last:stop], A[:, first:last, last:stop].mT, alpha=-1)
        inverse = factor_block(A[:, first:last, first:last])
        if first:
            A[:, :first, first:last] = torch.bmm(A[:, :first, first:last], inverse.mT)


def spans(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Return where pieces of `step` columns begin and end."""
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]
