"""Improve codes and scales after GPTQ: cyclic descent on the loss, through which GPTQ goes but once.

    W       [out, in]   weights
    H       [in, in]    Hessian, and what damping adds to its diagonal: `added` [in]
    D       [in, out]   d_j = w_j - s c_j, what is lost in column j
    G       [in, out]   (H + added) D, half the gradient of the loss tr(D^T (H + added) D)

Group by group, with all other groups fixed. First the scales: the loss is a parabola in each row's s, least
at s + (sum_j c_j G_j) / (sum_jk c_j H_jk c_k). Then the codes, one column after another: the loss is a
parabola in column j, least at s c_j = w_j + (sum_{k != j} H_jk d_k) / H_jj, so the code nearest to that is
the best. Neither step can raise the loss, but by rounding. Rows are independent of each other.
"""

import torch
from torch import Tensor

from moe4.gptq.columns import MAX_COLUMNS, solve_block
from moe4.gptq.grid import to_bf16_grid
from moe4.gptq.products import product_dtype

LARGEST_STEP = 2.0  # a scale may not grow or shrink by more at a time; keeps a group of zeros at zero


def descend(
    W: Tensor,
    codes: Tensor,
    scales: Tensor,
    H: Tensor,
    added: Tensor,
    sweeps: int,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (codes int8 [out, in], scales [out, in / group]) after `sweeps` passes over the groups.

    `gradient` is G if it is known, float32 [in, out], and is overwritten. Peak memory: four times W and once
    H beside what is given.

    Products have the operands of `product_dtype`. In bf16 that is fine enough, because they carry what a
    sweep *changed*, which no other term cancels.
    """
    num_columns = W.shape[1]
    group_size = num_columns // scales.shape[1]
    assert group_size <= MAX_COLUMNS
    Wt, C, S = W.T.contiguous(), codes.T.contiguous(), scales.T.contiguous()
    D = Wt - C * S.repeat_interleave(group_size, dim=0)
    G = gradient if gradient is not None else (H @ D).addcmul_(added.unsqueeze(1), D)
    fast = H.to(product_dtype(W), copy=True)
    fast.diagonal().add_(added)
    # What G has not heard of: this sweep's change of the groups before the one at hand, the last's of others.
    change = torch.zeros_like(D, dtype=fast.dtype)
    one_group = torch.zeros(group_size, dtype=torch.int64, device=W.device)
    for sweep in range(sweeps):
        for group in range(scales.shape[1]):
            here = slice(group * group_size, (group + 1) * group_size)
            heard = slice(num_columns if sweep else here.start)
            G[here] += fast[here, heard] @ change[heard]
            square = H[here, here] + added[here].diag()
            before = D[here].clone()
            missed = torch.addmm(G[here], square, before, alpha=-1)  # what the other groups put into G
            _refit(Wt[here], C[here], S[group], D[here], G[here], square)
            # The columns of a group after j still have their old loss when j's turn comes; those before it,
            # which solve_block takes account of, have their new one.
            missed.addmm_(square.triu(1), D[here])
            D[here] = Wt[here]
            solve_block(D[here], missed, C[here], S[group : group + 1], one_group, square)
            torch.sub(D[here], before, out=before)
            change[here] = before
    return C.T.contiguous(), S.T.contiguous()


def _refit(W: Tensor, C: Tensor, s: Tensor, D: Tensor, G: Tensor, square: Tensor) -> None:
    """Move one group's scales s [out] to the least loss, where bf16 holds a better one; updates s and D.

    W, C, D, G [group, out]; square [group, group]. A scale keeps its sign.
    """
    c = C.to(D.dtype)
    slope = (c * G).sum(0)
    curvature = (square @ c).mul_(c).sum(0)
    new = to_bf16_grid(s + slope / curvature.clamp_min(torch.finfo(D.dtype).tiny))
    step = new - s
    near = (new / s > 1 / LARGEST_STEP) & (new / s < LARGEST_STEP)
    better = near & (step * (step * curvature - 2 * slope) < 0)
    s.copy_(torch.where(better, new, s))
    torch.sub(W, c.mul_(s), out=D)
