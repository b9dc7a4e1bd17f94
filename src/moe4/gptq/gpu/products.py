"""Matrix products on the matrix units, and the batched Cholesky factorization that rests on them.

A float32 number is, to 16 bits, the sum of two in bf16, high + low; products of bf16 are exact in float32. So
three products on the bf16 units, high high + high low + low high, added in float32, give one of float32
numbers to about 2^-16 of the operands' size, several times as fast as float32 arithmetic does. (TF32 keeps
2^-11.) Activations that are bf16 to begin with need one product, and lose nothing but in the sum.
"""

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bf16x3", "tf32"]
FACTOR_COLUMNS = 128


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (high, low), bf16, of x in float32."""
    high = x.to(torch.bfloat16)
    return high, (x - high.float()).to(torch.bfloat16)


def product(A: Tensor, B: Tensor, precision: Precision) -> Tensor:
    """Return A @ B, float32, of batches [n, p, k] and [n, k, q] in float32."""
    return Operand(B, precision).after(A)


class Operand:
    """A batch B [n, k, q] in float32 that products A @ B meet again and again, while parts of it change.

    Its halves in bf16 are kept: to split all of it anew costs more than a product with few rows of A does.
    """

    def __init__(self, B: Tensor, precision: Precision) -> None:
        self._B, self._precision = B, precision
        self._halves = split(B) if precision == "bf16x3" else None

    def changed(self, rows: slice) -> None:
        """Take notice that rows of B have changed."""
        if self._halves is not None:
            for half, part in zip(self._halves, split(self._B[:, rows]), strict=True):
                half[:, rows] = part

    def after(self, A: Tensor) -> Tensor:
        """Return A @ B[:, :p], float32, of A [n, m, p]."""
        rows = slice(A.shape[2])
        if self._halves is not None:
            (a, a_low), (b, b_low) = split(A), (half[:, rows] for half in self._halves)
            result = _bf16_product(a, b)
            result += _bf16_product(a, b_low)
            result += _bf16_product(a_low, b)
            return result
        if self._precision == "tf32" and A.is_cuda:
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = True
            try:
                return torch.bmm(A, self._B[:, rows])
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before
        return torch.bmm(A, self._B[:, rows])


def _bf16_product(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())  # the same numbers: a CPU has no product that ends in float32


def gram(x: Tensor) -> Tensor:
    """Return x^T x, float32 [in, in], of tokens x [tokens, in] in bf16 or float32."""
    if x.dtype == torch.bfloat16:
        return _bf16_product(x.T.unsqueeze(0), x.unsqueeze(0))[0]
    high, low = split(x.float())
    total, mixed = gram(high), _bf16_product(high.T.unsqueeze(0), low.unsqueeze(0))[0]
    return total.add_(mixed + mixed.T)


def cholesky_(A: Tensor) -> Tensor:
    """Put L, A = L L^T, into the lower triangles of A [batch, n, n]; return which factored, bool [batch].

    Above the diagonal, beyond the blocks on it, A stays. Left-looking: a block of columns takes what all
    columns before it give in one product.
    """
    batch, size, _ = A.shape
    fine = torch.ones(batch, dtype=torch.bool, device=A.device)
    for start in range(0, size, FACTOR_COLUMNS):
        stop = min(start + FACTOR_COLUMNS, size)
        if start:
            A[:, start:, start:stop].baddbmm_(A[:, start:, :start], A[:, start:stop, :start].mT, alpha=-1)
        L, info = torch.linalg.cholesky_ex(A[:, start:stop, start:stop])
        A[:, start:stop, start:stop] = L
        fine &= info == 0
        if stop < size:
            eye = torch.eye(stop - start, device=A.device, dtype=A.dtype).expand_as(L)
            inverse = torch.linalg.solve_triangular(L, eye, upper=False)
            A[:, stop:, start:stop] = torch.bmm(A[:, stop:, start:stop], inverse.mT)
    return fine & torch.isfinite(A.diagonal(dim1=1, dim2=2)).all(1)


def add_gram_(total: Tensor, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Add sum_i w_i x_i x_i^T of tokens x [tokens, in] to `total`, float32 [in, in]; return it."""
    if weights is not None:
        x = x.float() * weights.sqrt().unsqueeze(1)
    return total.add_(gram(x))
