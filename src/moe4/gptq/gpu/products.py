"""Matrix products that end in float32, and sums of outer products that rest on them."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def multiply(A: Tensor, B: Tensor) -> Tensor:
    """Return A @ B, float32, of batches [n, p, k] and [n, k, q] of one dtype; halves multiply exactly."""
    if A.dtype not in HALF:
        return torch.bmm(A, B)
    if A.is_cuda:
        return torch.bmm(A, B, out_dtype=torch.float32)
    return torch.bmm(A.float(), B.float())  # the same numbers: a CPU has no product that ends in float32


def add_product_(C: Tensor, A: Tensor, B: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Make C, float32 [n, p, q], beta C + alpha A @ B, and return it; C may be a view of columns or rows."""
    if A.dtype not in HALF:
        return C.baddbmm_(A, B, alpha=alpha, beta=beta)
    if C.is_cuda:
        return torch.baddbmm(C, A, B, out_dtype=torch.float32, alpha=alpha, beta=beta, out=C)
    return C.baddbmm_(A.float(), B.float(), alpha=alpha, beta=beta)


def gram(x: Tensor) -> Tensor:
    """Return x^T x, float32 [in, in], of tokens x [tokens, in] in bf16 or float32."""
    return add_gram_(torch.zeros(x.shape[1], x.shape[1], device=x.device, dtype=torch.float32), x)


def add_gram_(
    total: Tensor, x: Tensor, weights: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """Make `total`, float32 [in, in], beta total + alpha sum_i w_i x_i x_i^T, and return it.

    x [tokens, in] is bf16, and then one product gives it but for the sum's rounding; or float32, which is cut
    in two of bf16 for three products.
    """
    if weights is not None:
        x = x.float() * weights.sqrt().unsqueeze(1)
    C = total.unsqueeze(0)
    if x.dtype in HALF:
        add_product_(C, x.T.unsqueeze(0), x.unsqueeze(0), alpha=alpha, beta=beta)
        return total
    high = x.to(torch.bfloat16)
    low = (x - high.float()).to(torch.bfloat16)
    mixed = multiply(high.T.unsqueeze(0), low.unsqueeze(0))
    add_product_(C, high.T.unsqueeze(0), high.unsqueeze(0), alpha=alpha, beta=beta)
    C.add_(mixed + mixed.mT, alpha=alpha)  # the same on both sides of the diagonal
    return total
