"""Made-up matrices and Hessians for the GPU's solver, and the rules it follows in plain torch and float32."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.gptq.descent import _refit
from moe4.gptq.factor import damped_factor
from moe4.gptq.gpu.products import gram
from moe4.gptq.grid import search_scales
from moe4.gptq.solver import QuantizedMatrix
from moe4.recipe import Gptq

BATCH = 8
TOKENS = 6144


@dataclass(frozen=True, kw_only=True)
class Problem:
    """W [batch, in, out] and H [batch, in, in] on the device."""

    W: Tensor
    H: Tensor
    part_rows: list[int]


def make_problem(
    size: int, part_rows: list[int], seed: int, *, tokens: int = TOKENS, device: str = "cuda"
) -> Problem:
    """Make tokens with a spectrum that falls as 1/i and some large channels; mostly fewer than channels."""
    generator = torch.Generator(device).manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    spectrum = torch.arange(1, size + 1, device=device).float().rsqrt()
    gains = torch.exp(0.5 * randn(size))
    gains[torch.randperm(size, device=device, generator=generator)[:8]] *= 20
    mixing = (spectrum[:, None] * randn(size, size) / spectrum.norm() * gains).bfloat16()
    H = torch.empty(BATCH, size, size, device=device)
    pool = gram(randn(4 * tokens, size).bfloat16() @ mixing) * (2 / (4 * tokens))
    for number in range(BATCH):
        count = tokens >> (number % 4)  # some experts are cold
        shift = 0.5 * randn(1, size)
        own = gram((randn(count, size) + shift).bfloat16() @ mixing) * (2 / count)
        H[number] = own * (count / (count + 512)) + pool * (512 / (count + 512))
    rows = sum(part_rows)
    W = randn(BATCH, size, rows) * torch.exp(0.3 * randn(BATCH, 1, rows)) / size**0.5
    return Problem(W=W, H=H, part_rows=part_rows)


def true_errors(problem: Problem, results: list[list[QuantizedMatrix]]) -> list[float]:
    """Return each member's error over all rows, by float32 products."""
    lost = [
        w - torch.cat([dequantize(part.codes, part.scales) for part in parts]).T
        for w, parts in zip(problem.W, results, strict=True)
    ]
    return _relative(problem, lost)


def _relative(problem: Problem, lost: list[Tensor]) -> list[float]:
    return [
        float(((h @ d) * d).sum(dtype=torch.float64) / ((h @ w) * w).sum(dtype=torch.float64))
        for h, d, w in zip(problem.H, lost, problem.W, strict=True)
    ]


def reference_errors(problem: Problem, group: int) -> list[float]:
    """Return the errors that the rules of `gptq/solver.py` and `gptq/descent.py` give in float32."""
    settings, W, H = Gptq(), problem.W, problem.H
    diagonal = H.diagonal(dim1=1, dim2=2)
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    R, S = torch.empty_like(H), []
    for number in range(len(W)):
        result = damped_factor(H[number], order[number], settings.damping)
        assert result is not None
        R[number] = result[0]
        importance = torch.empty_like(diagonal[number])
        importance[order[number]] = R[number].diagonal().square()
        w = W[number].T.contiguous()
        found = search_scales(
            w,
            importance,
            group,
            signed=settings.signed_scales,
            candidates=settings.scale_candidates,
            shrink=settings.scale_shrink,
        )
        S.append(found.T)
    scales = torch.stack(S).contiguous()
    codes = _solve(W, scales, R, order, group)
    del R
    damped = H.clone()
    damped.diagonal(dim1=1, dim2=2).add_(settings.damping * diagonal.mean(1, keepdim=True))
    D = W - codes * scales.repeat_interleave(group, 1)
    for _ in range(settings.descent_sweeps):
        _descend(W, codes, scales, D, damped, group)
    return _relative(problem, list(D))


def _round(D: Tensor, missed: Tensor, codes: Tensor, s: Tensor, R: Tensor) -> None:
    for j in range(D.shape[1]):
        d = D[:, j]
        q = d.add(missed[:, j] / R[:, j, j, None]).div_(s[:, j]).round_().clamp_(-8, 7)
        codes[:, j] = q
        d.sub_(q.mul_(s[:, j]))
        if j + 1 < D.shape[1]:
            missed[:, j + 1 :].addcmul_(R[:, j, j + 1 :, None], d[:, None, :])


def _solve(W: Tensor, S: Tensor, R: Tensor, order: Tensor, group: int) -> Tensor:
    wide = order.unsqueeze(2).expand(-1, -1, W.shape[2])
    D, codes = W.gather(1, wide), torch.empty_like(W)
    for start in range(0, W.shape[1], group):
        here = slice(start, start + group)
        missed = torch.bmm(R[:, :start, here].mT, D[:, :start])
        s = S.gather(1, (order[:, here] // group).unsqueeze(2).expand(-1, -1, W.shape[2]))
        _round(D[:, here], missed, codes[:, here], s, R[:, here, here])
    return torch.empty_like(codes).scatter_(1, wide, codes)


def _descend(W: Tensor, codes: Tensor, S: Tensor, D: Tensor, H: Tensor, group: int) -> None:
    for start in range(0, W.shape[1], group):
        here = slice(start, start + group)
        G, square, s = torch.bmm(H[:, here], D), H[:, here, here].contiguous(), S[:, start // group]
        missed = torch.baddbmm(G, square, D[:, here], alpha=-1)
        for number in range(len(W)):
            _refit(
                W[number, here], codes[number, here], s[number], D[number, here], G[number], square[number]
            )
        missed.baddbmm_(square.triu(1), D[:, here])
        D[:, here] = W[:, here]
        _round(D[:, here], missed, codes[:, here], s.unsqueeze(1).expand(-1, group, -1), square)
