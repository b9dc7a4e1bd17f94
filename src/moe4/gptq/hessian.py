"""The Hessian of a layer's squared output error.

H   2/n sum w_i x_i x_i^T     [in, in], the Hessian of the mean squared output error (arXiv:2210.17323, eq. 2)
"""

import torch
from torch import Tensor

from moe4.errors import CalibrationError

ROWS_AT_ONCE = 16384


class Hessian:
    """Accumulate H over tokens, in float32 (float64 for float64 input)."""

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
            rows = x[start : start + ROWS_AT_ONCE].to(self.sum.dtype)
            if weights is None:
                self.weight += rows.shape[0]
            else:
                w = weights[start : start + ROWS_AT_ONCE].to(self.sum.dtype)
                self.weight += float(w.sum())
                rows = rows * w.sqrt().unsqueeze(1)
            self.sum.addmm_(rows.T, rows)
        self.num_tokens += x.shape[0]
        if not torch.isfinite(self.sum.diagonal()).all():
            raise CalibrationError("calibration activations hold NaN or Inf")

    def mean(self) -> Tensor:
        """Return H [in, in]; zeros if no token was added."""
        return self.sum * (2.0 / self.weight if self.weight else 0.0)


def shrink(own: Tensor, num_tokens: int, pooled: Tensor, pooled_tokens: int) -> Tensor:
    """Return (n own + n0 pooled) / (n + n0): an expert that few tokens reached leans on the pool."""
    total = num_tokens + pooled_tokens
    if total == 0:
        return own
    return (own * num_tokens + pooled * pooled_tokens) / total
