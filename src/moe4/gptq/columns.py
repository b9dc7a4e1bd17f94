"""The loops of GPTQ that no matrix product can do, in C++ where there is a path for it, else in torch.

A block of columns is solved in transposed layout, a column contiguous:

D       [columns, out]   in: the weights w; out: what rounding left, d = w - Q(w)
missed  [columns, out]   what the columns before the block make these answer for, sum_i d_i R_ij
codes   [columns, out]   int8, written
S       [groups, out]    scales; `groups` [columns] says which row a column takes
R       [columns, columns]  the block on the diagonal of the upper factor, H = R R^T (`solver.py`)
"""

import torch
from torch import Tensor

from moe4.checkpoint.packed import CODE_MAX, CODE_MIN
from moe4.environment import Variable, chosen
from moe4.gptq import _columns

MAX_COLUMNS: int = _columns.MAX_COLUMNS
PATHS: tuple[str, ...] = (*_columns.path_names(), "torch")


def selected_path(tensor: Tensor) -> str:
    """Return the path for a tensor: MOE4_COLUMNS, else the fastest; `torch` off the CPU or not in float32."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return "torch"
    return chosen(Variable.COLUMNS, PATHS, PATHS[0])


def solve_block(D: Tensor, missed: Tensor, codes: Tensor, S: Tensor, groups: Tensor, R: Tensor) -> None:
    """Round the columns of a block one after another, each making up for those before it.

    Writes `D` and `codes`; may write `missed`. The paths differ in the order of their sums.
    """
    path = selected_path(D)
    if path == "torch":
        return _solve_block_in_torch(D, missed, codes, S, groups, R)
    num_columns, num_rows = D.shape
    assert num_columns <= MAX_COLUMNS
    assert D.stride(1) == 1
    assert all(t.is_contiguous() for t in (missed, codes, S, groups))
    assert (missed.dtype, S.dtype, R.dtype, codes.dtype, groups.dtype) == (
        *[torch.float32] * 3,
        torch.int8,
        torch.int64,
    )
    assert missed.shape == codes.shape == D.shape
    assert S.shape[1] == num_rows
    assert groups.shape == (num_columns,)
    assert R.shape == (num_columns, num_columns)
    factor = R.T.contiguous()
    _columns.solve_block(
        PATHS.index(path),
        num_threads=torch.get_num_threads(),
        num_columns=num_columns,
        num_rows=num_rows,
        stride=D.stride(0),
        work=D.data_ptr(),
        missed=missed.data_ptr(),
        codes=codes.data_ptr(),
        scales=S.data_ptr(),
        group=groups.data_ptr(),
        factor=factor.data_ptr(),
    )
    return None


def _solve_block_in_torch(
    D: Tensor, missed: Tensor, codes: Tensor, S: Tensor, groups: Tensor, R: Tensor
) -> None:
    """The reference: the same in torch, on any device and in any float dtype."""
    for j, group in enumerate(groups.tolist()):
        d, scale = D[j], S[group]
        q = d.addcdiv(missed[j], R[j, j]).div_(scale).round_().clamp_(CODE_MIN, CODE_MAX)
        codes[j] = q
        d.sub_(q.mul_(scale))
        missed[j + 1 :].addr_(R[j, j + 1 :], d)


def search_factors(
    W: Tensor,
    weight: Tensor,
    group_size: int,
    full: Tensor,
    factors: list[float],
    best: Tensor,
    smallest: float,
) -> Tensor | None:
    """Return, per group, the first of `full` times the factors, in bf16, that errs less than `best`.

    W, float32 [out, in]; weight, float32 [in]; full and best, float32 [out, groups]. The error is
    sum_k weight_k (w_k - Q(w_k))^2; a scale below `smallest` becomes that. None where no C++ path
    applies.
    """
    path = selected_path(W)
    if path == "torch":
        return None
    W, weight, full, best = W.contiguous(), weight.float().contiguous(), full.contiguous(), best.clone()
    num_rows, num_groups = best.shape
    assert W.shape == (num_rows, num_groups * group_size)
    assert full.shape == best.shape
    assert (full.dtype, best.dtype) == (torch.float32, torch.float32)
    assert weight.shape == (num_groups * group_size,)
    assert best.is_contiguous()
    assert group_size in (32, 64, 128)
    tried = torch.tensor(factors, dtype=torch.float32)
    _columns.search_scales(
        PATHS.index(path),
        num_threads=torch.get_num_threads(),
        num_rows=num_rows,
        num_groups=num_groups,
        group_size=group_size,
        w=W.data_ptr(),
        weight=weight.data_ptr(),
        full=full.data_ptr(),
        factors=tried.data_ptr(),
        num_factors=len(factors),
        smallest=smallest,
        best=best.data_ptr(),
    )
    return best
