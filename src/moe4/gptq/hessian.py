"""The Hessian of a layer's squared output error.

H   2/n sum w_i x_i x_i^T     [in, in], the Hessian of the mean squared output error (arXiv:2210.17323, eq. 2)
"""

import torch
from torch import Tensor

from moe4.errors import CalibrationError
from moe4.gptq.products import HAS_BF16, add_gram, product_dtype

ROWS_AT_ONCE = 4096
BLOCK_COLUMNS = 1024


class Hessian:
    """Accumulate H over tokens, in float32 (float64 for float64 input).

    `sum` is whole on and below the diagonal; `mean` fills in the rest.
    """

    def __init__(
        self, size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.sum = torch.zeros(size, size, dtype=dtype, device=device)
        self.weight = 0.0
        self.num_tokens = 0

    @staticmethod
    def from_sum(total: Tensor, weight: float, num_tokens: int) -> "Hessian":
        """Return a Hessian whose `sum`, `weight` and `num_tokens` are known."""
        hessian = Hessian(0)
        hessian.sum, hessian.weight, hessian.num_tokens = total, weight, num_tokens
        return hessian

    def add(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Add tokens x [tokens, in] of any float dtype, optionally weighted by weights [tokens].

        Raises CalibrationError if a value is not finite.
        """
        for start in range(0, x.shape[0], ROWS_AT_ONCE):
            rows = x[start : start + ROWS_AT_ONCE]
            if weights is None:
                self.weight += rows.shape[0]
                if rows.dtype == product_dtype(self.sum) == torch.bfloat16 and HAS_BF16:
                    add_gram(self.sum, rows)
                    continue
                rows = rows.to(self.sum.dtype)
            else:
                rows = rows.to(self.sum.dtype)
                w = weights[start : start + ROWS_AT_ONCE].to(self.sum.dtype)
                self.weight += float(w.sum())
                rows = rows * w.sqrt().unsqueeze(1)
            for first in range(0, rows.shape[1], BLOCK_COLUMNS):
                here = slice(first, first + BLOCK_COLUMNS)
                self.sum[first:, here].addmm_(rows[:, first:].T, rows[:, here])
        self.num_tokens += x.shape[0]
        if not torch.isfinite(self.sum.diagonal()).all():
            raise CalibrationError("calibration activations hold NaN or Inf")

    def mean(self) -> Tensor:
        """Return H [in, in]; zeros if no token was added."""
        H = self.sum * (2.0 / self.weight if self.weight else 0.0)
        for first in range(0, H.shape[0], BLOCK_COLUMNS):
            here = slice(first, first + BLOCK_COLUMNS)
            H[:first, here] = H[here, :first].T
            H[here, here] = H[here, here].tril() + H[here, here].tril(-1).T
        return H


def shrink(own: Tensor, num_tokens: int, pooled: Tensor, pooled_tokens: int) -> Tensor:
    """Make `own` (n own + n0 pooled) / (n + n0) and return it: a cold expert leans on the pool."""
    of_own, of_pooled = shares(num_tokens, pooled_tokens)
    return own.mul_(of_own).add_(pooled, alpha=of_pooled)


def shares(num_tokens: int, pooled_tokens: int) -> tuple[float, float]:
    """Return what an expert's own Hessian and the pooled one count for: n / (n + n0) and n0 / (n + n0)."""
    total = num_tokens + pooled_tokens
    return (num_tokens / total, pooled_tokens / total) if total else (1.0, 0.0)
