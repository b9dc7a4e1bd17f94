"""The two costly steps on a Hessian, as matrix products: its upper factor, and errors weighted by it.

R   [in, in]   upper triangular, H = R R^T; its inverse is the U of arXiv:2210.17323: H^-1 = U^T U

GPTQ needs no inverse. Its update with U is back-substitution with R: after columns i < j are rounded, what is
left of the loss tr(D H D^T) = ||D R||^2, column by column (sum_{i<j} d_i R_ij + d_j R_jj)^2, is least for
d_j = -sum_{i<j} d_i R_ij / R_jj (Babai's nearest plane). That saves the triangular inverse, and its rounding.
"""

import torch
from torch import Tensor

MAX_DAMPING = 1.0
BLOCK_COLUMNS = 1024


def damped_factor(H: Tensor, order: Tensor, damping: float) -> tuple[Tensor, float] | None:
    """Return (R of the damped H in `order`, the damping), tenfold while H does not factor; None past 1.

    `damping` times the mean of the diagonal is added to it; a column that no token touched gets the mean
    in full as well, and then rounds to nearest. Peak memory: three times H beside H.
    """
    if not bool(torch.isfinite(H).all()) or not bool((H.diagonal() > 0).any()):
        return None
    backwards = order.flip(0)
    A = H[backwards][:, backwards]
    diagonal = A.diagonal()
    mean = diagonal.mean()
    kept = torch.where(diagonal == 0, mean, diagonal)
    tried = damping
    while True:
        diagonal.copy_(kept + tried * mean)
        L, info = torch.linalg.cholesky_ex(A)
        if int(info) == 0 and bool(torch.isfinite(L.diagonal()).all()):
            del A, diagonal
            return L.flip(0, 1), tried  # A = J H J = L L^T with the reversal J; R = J L J
        if tried >= MAX_DAMPING:
            return None
        tried = min(10 * tried, MAX_DAMPING)


def times_factor(R: Tensor, P: Tensor, order: Tensor) -> Tensor:
    """Return R P, float32 [in, out], its rows back in the columns' own order; P [in, out] in any float dtype.

    With P = R^T D that is H D, for half the operations; no terms cancel in it, so P may be bf16.
    """
    result = torch.empty_like(P, dtype=R.dtype)
    for start in range(0, R.shape[0], BLOCK_COLUMNS):
        here = slice(start, start + BLOCK_COLUMNS)
        result[order[here]] = (R[here, start:].to(P.dtype) @ P[start:]).to(R.dtype)
    return result


def weighted_square(D: Tensor, H: Tensor | None) -> float:
    """Return tr(D H D^T), D [out, in]; H is the identity if None. Takes half the product: H is symmetric."""
    if H is None:
        return float(D.square().sum(dtype=torch.float64))
    total = 0.0
    for start in range(0, D.shape[1], BLOCK_COLUMNS):
        here = slice(start, start + BLOCK_COLUMNS)
        product = D[:, here] @ H[here, here]
        if start:
            product.addmm_(D[:, :start], H[:start, here], alpha=2.0)
        total += float(product.mul_(D[:, here]).sum(dtype=torch.float64))
    return total
