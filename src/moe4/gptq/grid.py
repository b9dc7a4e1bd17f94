"""The grid a matrix is quantized to: one bf16 scale for each row and group of columns, 16 codes.

W       [out, in]
scales  [out, in / group_size], float32 that bf16 holds exactly; may be negative, never zero
"""

import torch
from torch import Tensor

from moe4.checkpoint.packed import CODE_MAX, CODE_MIN
from moe4.gptq.columns import search_factors

SMALLEST_SCALE = 2.0**-120  # a bf16 normal; stands in for the scale of a group of zeros


def round_to_grid(W: Tensor, scales: Tensor) -> Tensor:
    """Return the nearest codes, int8 [out, in]."""
    grouped = W.reshape(W.shape[0], scales.shape[1], -1)
    codes = (grouped / scales.unsqueeze(-1)).round_().clamp_(CODE_MIN, CODE_MAX)
    return codes.to(torch.int8).flatten(1)


def absmax_scales(W: Tensor, group_size: int) -> Tensor:
    """Return the positive scales of plain round to nearest: the largest magnitude over 7.5."""
    peak = W.reshape(W.shape[0], -1, group_size).abs().amax(-1)
    return to_bf16_grid(peak / 7.5)


def search_scales(
    W: Tensor, importance: Tensor, group_size: int, *, signed: bool, candidates: int, shrink: float
) -> Tensor:
    """Return the scales with the least error weighted by `importance` [in], the diagonal of H.

    Tries `candidates` factors on the full range, from 1 down to `shrink`. Signed: the full range has the code
    -8 at the largest magnitude, whatever its sign; half of the factors turn the range round, so that +7 gets
    there. Unsigned: the range is the smallest that holds both sides. The plain absmax scale is always among
    what is tried. Memory: a few times W.
    """
    grouped = W.reshape(W.shape[0], -1, group_size)
    weight = importance.to(W.dtype).view(1, -1, group_size)
    low, high = grouped.amin(-1), grouped.amax(-1)
    if signed:
        full = torch.where(high.abs() > low.abs(), -high / 8, -low / 8)
    else:
        full = torch.maximum(high / 7, -low / 8)
    best = absmax_scales(W, group_size)
    factors = scale_factors(signed=signed, candidates=candidates, shrink=shrink)
    found = search_factors(W, importance, group_size, full, factors, best, SMALLEST_SCALE)
    if found is not None:
        return found
    best_error = _group_error(grouped, best, weight)
    for factor in factors:
        scales = to_bf16_grid(full * factor)
        error = _group_error(grouped, scales, weight)
        better = error < best_error
        best = torch.where(better, scales, best)
        best_error = torch.where(better, error, best_error)
    return best


def scale_factors(*, signed: bool, candidates: int, shrink: float) -> list[float]:
    """Return the factors on the full range that are tried; half of them turn it round where it is signed."""
    turned = candidates // 2 if signed else 0
    factors: list[float] = torch.linspace(1.0, shrink, candidates - turned, dtype=torch.float32).tolist()
    factors += (-8 / 7 * torch.linspace(1.0, shrink, turned, dtype=torch.float32)).tolist()
    return factors


def _group_error(grouped: Tensor, scales: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted squared error of each group [out, groups] when rounded to its scale."""
    expanded = scales.unsqueeze(-1)
    difference = (grouped / expanded).round_().clamp_(CODE_MIN, CODE_MAX).mul_(expanded).sub_(grouped)
    return difference.square_().mul_(weight).sum(-1)


def to_bf16_grid(scales: Tensor) -> Tensor:
    """Round scales to bf16, away from zero."""
    rounded = scales.to(torch.bfloat16).to(scales.dtype)
    return torch.where(rounded.abs() < SMALLEST_SCALE, torch.full_like(rounded, SMALLEST_SCALE), rounded)
