"""The Hessian of a layer's squared output error, and the factor of its inverse that GPTQ needs.

H   2/n sum w_i x_i x_i^T     [in, in], the Hessian of the mean squared output error (arXiv:2210.17323, eq. 2)
U   upper Cholesky factor of H^-1: H^-1 = U^T U (the paper's algorithm 1)
"""

import torch
from torch import Tensor

from moe4.errors import CalibrationError

MAX_DAMPING = 1.0
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


def damp(H: Tensor, damping: float) -> Tensor:
    """Return H with `damping` times its mean diagonal added to the diagonal.

    Columns that no token ever touched get the mean diagonal in full; their weights then round to nearest.
    """
    damped = H.clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    return damped


def inverse_factor(H: Tensor) -> Tensor | None:
    """Return U [in, in], or None if H is not numerically positive definite.

    With J the reversal of rows: factor J H J = L L^T; then H^-1 = (J L^-1 J)^T (J L^-1 J), so U = J L^-1 J.
    One Cholesky and one triangular inverse, where the paper's code takes three factorizations.
    """
    L, info = torch.linalg.cholesky_ex(H.flip(0, 1))
    if int(info) != 0:
        return None
    identity = torch.eye(H.shape[0], dtype=H.dtype, device=H.device)
    U = torch.linalg.solve_triangular(L, identity, upper=False).flip(0, 1)
    return U if bool(torch.isfinite(U).all()) else None


def damped_inverse_factor(H: Tensor, damping: float) -> tuple[Tensor, float] | None:
    """Return (U, the damping it took), tenfold while H does not factor, or None past 1."""
    if not bool(torch.isfinite(H).all()) or not bool((H.diagonal() > 0).any()):
        return None
    tried = damping
    while True:
        U = inverse_factor(damp(H, tried))
        if U is not None:
            return U, tried
        if tried >= MAX_DAMPING:
            return None
        tried = min(10 * tried, MAX_DAMPING)
