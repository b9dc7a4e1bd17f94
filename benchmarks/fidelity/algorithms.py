"""What moe4 is compared with, written from the papers' equations and independent of moe4's own solver.

    W   [out, in]   weights, float32
    H   [in, in]    2/n sum x x^T over the tokens a matrix sees
    U   [in, in]    upper Cholesky factor of the damped H^-1 (arXiv:2210.17323, algorithm 1)

Each returns the dense weights that its codes and bf16 scales stand for; codes lie in -8..7.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_SIZE = 128
SMALLEST_SCALE = 2.0**-120

Solve = Callable[[Tensor, Tensor], Tensor]


def absmax_scale(group: Tensor) -> Tensor:
    """Return the scale [out, 1] of a group [out, size]: the largest magnitude over 7.5, in bf16."""
    scale = (group.abs().amax(1, keepdim=True) / 7.5).bfloat16().float()
    return scale.clamp_min(SMALLEST_SCALE)


def nearest(W: Tensor, scale: Tensor) -> Tensor:
    """Return the nearest values on the grid."""
    return (W / scale).round().clamp(-8, 7) * scale


def round_to_nearest(W: Tensor, H: Tensor) -> Tensor:
    """Round every group to nearest on its absmax scale; H is not looked at."""
    groups = [nearest(group, absmax_scale(group)) for group in W.split(GROUP_SIZE, dim=1)]
    return torch.cat(groups, dim=1)


def gptq(W: Tensor, H: Tensor, *, damping: float, scales_from_updated: bool, order_by_size: bool) -> Tensor:
    """Run the paper's algorithm 1, column by column, on absmax scales.

    `scales_from_updated`: a group's scale is taken when its first column's turn comes, from weights that
    already make up for earlier columns (the paper's groups); else from the original weights. `order_by_size`:
    columns by falling diag(H), each with the scale of its original group. Raises ValueError if H cannot be
    factored.
    """
    assert not (scales_from_updated and order_by_size)
    num_columns = W.shape[1]
    order = torch.arange(num_columns)
    if order_by_size:
        order = torch.argsort(H.diagonal(), descending=True)
    static = [absmax_scale(group) for group in W.split(GROUP_SIZE, dim=1)]
    U = _inverse_factor(H[order][:, order], damping)
    work, Q, errors = W[:, order].clone(), torch.empty_like(W), torch.empty_like(W)
    scale = static[0]
    for position, column in enumerate(order.tolist()):
        stop = (position // GROUP_SIZE + 1) * GROUP_SIZE
        if not scales_from_updated:
            scale = static[column // GROUP_SIZE]
        elif position % GROUP_SIZE == 0:
            scale = absmax_scale(work[:, position:stop])
        w = work[:, position : position + 1]
        q = nearest(w, scale)
        Q[:, column] = q[:, 0]
        error = (w - q) / U[position, position]
        errors[:, position] = error[:, 0]
        work[:, position + 1 : stop] -= error * U[position, position + 1 : stop]
        if position + 1 == stop:  # the paper's lazy batch: the rest learns of a block at its end
            block = slice(stop - GROUP_SIZE, stop)
            work[:, stop:] -= errors[:, block] @ U[block, stop:]
    return Q


def _inverse_factor(H: Tensor, damping: float) -> Tensor:
    H = H.double()
    diagonal = H.diagonal()
    mean = diagonal.mean()
    H = H + torch.diag(torch.where(diagonal == 0, mean, torch.zeros_like(mean)) + damping * mean)
    L, info = torch.linalg.cholesky_ex(H)
    if int(info):
        raise ValueError("the damped Hessian is not positive definite")
    U, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(L), upper=True)
    if int(info):
        raise ValueError("the inverse of the damped Hessian is not positive definite")
    return U.float()


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to quantize an expert's matrices, and what it does where H cannot be factored."""

    title: str
    solve: Solve
    needs_tokens: bool = True


def plain_gptq(W: Tensor, H: Tensor) -> Tensor:
    """The GPTQ paper with static absmax scales, columns as they stand, damping 0.01."""
    return gptq(W, H, damping=0.01, scales_from_updated=False, order_by_size=False)


def moe_quant(W: Tensor, H: Tensor) -> Tensor:
    """What MoE-Quant computes by default: the paper's groups, columns as they stand, absmax scales.

    Where the factorization fails it rounds to nearest, without a word.
    """
    try:
        return gptq(W, H, damping=0.01, scales_from_updated=True, order_by_size=False)
    except ValueError:
        return round_to_nearest(W, H)


ALGORITHMS = {
    "rtn": Algorithm("round to nearest", round_to_nearest, needs_tokens=False),
    "gptq": Algorithm("plain GPTQ", plain_gptq),
    "moe-quant": Algorithm("MoE-Quant's algorithm", moe_quant),
}
