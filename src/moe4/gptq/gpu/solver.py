"""GPTQ of a batch of matrices of one shape, on a GPU: the rules of `gptq/solver.py` and `gptq/descent.py`.

    W       [batch, in, out]   weights, transposed; a column of a matrix is contiguous
    H       [batch, in, in]    Hessians; `added` [batch, in], what damping adds to their diagonals
    R       [batch, in, in]    upper factors of the damped H in permuted order (the lower triangle is not R's)
    D       [batch, in, out]   what is lost, w - s c
    C       [batch, in, out]   codes, int8
    S       [batch, groups, out] scales

The long products take OUTER_COLUMNS columns at a time; what the blocks of columns within those do to each
other is made up for in short ones.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe4.gptq.descent import LARGEST_STEP
from moe4.gptq.factor import damped_factor
from moe4.gptq.gpu.kernels import MAX_COLUMNS, search_scales, solve_block
from moe4.gptq.gpu.products import Operand, Precision, cholesky_
from moe4.gptq.grid import round_to_grid, scale_factors, to_bf16_grid
from moe4.gptq.solver import QuantizedMatrix, audited_rows
from moe4.recipe import Gptq

OUTER_COLUMNS = 512

Stage = Callable[[str], AbstractContextManager[None]]


def no_stage(_: str) -> AbstractContextManager[None]:
    """Do not time a stage."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSolver:
    """How batches are solved."""

    settings: Gptq
    group_size: int
    precision: Precision = "bf16x3"
    """Of the long products in which codes are computed; factors and errors are in float32."""
    stage: Stage = no_stage
    """Enters a context around each named stage; for benchmarks."""

    def quantize(self, W: Tensor, H: Tensor, part_rows: list[int]) -> list[list[QuantizedMatrix]]:
        """Quantize a batch; `part_rows` says how many rows of `out` each stacked matrix has.

        Returns each batch member's matrices. Peak memory: twice H and four times W beside the two.
        """
        stage, settings = self.stage, self.settings
        with stage("factor"):
            factors = self._factorize(H)
        with stage("scales"):
            S, plain = self._search(W, factors)
        with stage("errors"):
            rows = audited_columns(part_rows, W.device)
            audited = W.index_select(2, rows)
            lost = _lost_to_nearest(audited, plain.index_select(2, rows), self.group_size)
            whole, rtn = weighted_square(audited, H), weighted_square(lost, H)
            del audited, lost
        with stage("solve"):
            C = self._solve(W, S, factors)
        added, damping, factored = factors.added(H), factors.damping, factors.factored
        del factors
        D = torch.empty_like(W)
        _lose(W, C, S, D)
        with stage("descent"):
            for _ in range(settings.descent_sweeps):
                self._descend(W, C, S, D, H, added)
        with stage("errors"):
            error = weighted_square(D.index_select(2, rows), H)
        del D
        with stage("collect"):
            return self._collect(W, C, S, plain, (whole, rtn, error), damping, factored, part_rows)

    def _factorize(self, H: Tensor) -> "_Factors":
        """Permute, damp and factor all of H; what does not factor so, alone, as `factor.py` does."""
        settings = self.settings
        batch, size, _ = H.shape
        diagonal = H.diagonal(dim1=1, dim2=2)
        if settings.activation_order:
            order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
        else:
            order = torch.arange(size, device=H.device).expand(batch, size)
        mean = diagonal.mean(1, keepdim=True)
        damped = torch.where(diagonal == 0, mean, diagonal) + settings.damping * mean
        A = torch.empty_like(H)
        for number, backwards in enumerate(order.flip(1)):
            torch.index_select(H[number].index_select(0, backwards), 1, backwards, out=A[number])
        A.diagonal(dim1=1, dim2=2).copy_(damped.gather(1, order.flip(1)))
        fine = (cholesky_(A) & (mean[:, 0] > 0)).tolist()
        R = A.flip(1, 2)
        del A
        damping = [settings.damping] * batch
        factored = [True] * batch
        for number in range(batch):
            if fine[number]:
                continue
            result = damped_factor(H[number], order[number], settings.damping)
            if result is None:
                factored[number], damping[number] = False, 0.0
                R[number].zero_().fill_diagonal_(1.0)
            else:
                R[number], damping[number] = result
        return _Factors(order=order, R=R, damping=damping, factored=factored)

    def _search(self, W: Tensor, factors: "_Factors") -> tuple[Tensor, Tensor]:
        settings = self.settings
        tried = scale_factors(
            signed=settings.signed_scales, candidates=settings.scale_candidates, shrink=settings.scale_shrink
        )
        pivots = factors.R.diagonal(dim1=1, dim2=2).square()
        importance = torch.empty_like(pivots).scatter_(1, factors.order, pivots)
        return search_scales(
            W,
            importance,
            self.group_size,
            torch.tensor(tried, dtype=torch.float32, device=W.device),
            signed=settings.signed_scales,
        )

    def _solve(self, W: Tensor, S: Tensor, factors: "_Factors") -> Tensor:
        """Return GPTQ's codes on fixed scales."""
        R, order = factors.R, factors.order
        batch, size, _ = W.shape
        D, codes = torch.empty_like(W), torch.empty(W.shape, dtype=torch.int8, device=W.device)
        for number in range(batch):
            torch.index_select(W[number], 0, order[number], out=D[number])
        lost = Operand(D, self.precision)
        groups = torch.div(order, self.group_size, rounding_mode="floor").to(torch.int32)
        for start, stop in _spans(0, size, OUTER_COLUMNS):
            before = R[:, :start, start:stop].mT
            missed = lost.after(before) if start else torch.zeros_like(D[:, :stop])
            for first, last in _spans(start, stop, MAX_COLUMNS):
                here, block = slice(first, last), slice(first - start, last - start)
                solve_block(
                    D[:, here], missed[:, block], codes[:, here], S, groups[:, here], R[:, here, here]
                )
                if last < stop:
                    missed[:, block.stop :].baddbmm_(R[:, here, last:stop].mT, D[:, here])
            lost.changed(slice(start, stop))
        for number in range(batch):
            D_codes = torch.empty_like(codes[number])
            D_codes[order[number]] = codes[number]
            codes[number] = D_codes
        return codes

    def _descend(self, W: Tensor, C: Tensor, S: Tensor, D: Tensor, H: Tensor, added: Tensor) -> None:
        """Make one pass over the groups; updates C, S and D."""
        batch, size, _ = W.shape
        one_group = torch.zeros(batch, self.group_size, dtype=torch.int32, device=W.device)
        outer = max(OUTER_COLUMNS, self.group_size)
        lost = Operand(D, self.precision)
        for start, stop in _spans(0, size, outer):
            G = lost.after(H[:, start:stop]).addcmul_(added[:, start:stop, None], D[:, start:stop])
            for first, last in _spans(start, stop, self.group_size):
                here, block, group = (
                    slice(first, last),
                    slice(first - start, last - start),
                    first // self.group_size,
                )
                square = H[:, here, here].clone(memory_format=torch.contiguous_format)  # even of all of H
                square.diagonal(dim1=1, dim2=2).add_(added[:, here])
                before = D[:, here].clone()
                missed = torch.baddbmm(G[:, block], square, before, alpha=-1)  # what the other groups put in
                _refit(W[:, here], C[:, here], S[:, group], D[:, here], G[:, block], square)
                # Columns after j still have their old loss when j's turn comes; solve_block takes account of
                # those before it.
                missed.baddbmm_(square.triu(1), D[:, here])
                D[:, here] = W[:, here]
                solve_block(D[:, here], missed, C[:, here], S[:, group : group + 1], one_group, square)
                if last < stop:
                    G[:, block.stop :].baddbmm_(H[:, last:stop, here], D[:, here] - before)
            lost.changed(slice(start, stop))

    def _collect(
        self,
        W: Tensor,
        C: Tensor,
        S: Tensor,
        plain: Tensor,
        squares: tuple[Tensor, Tensor, Tensor],
        damping: list[float],
        factored: list[bool],
        part_rows: list[int],
    ) -> list[list[QuantizedMatrix]]:
        audited = [len(audited_rows(num_rows, W.device)) for num_rows in part_rows]
        sums = [[part.sum(1) for part in torch.split(square, audited, dim=1)] for square in squares]
        figures = torch.stack([torch.stack(parts) for parts in sums]).tolist()  # [3][parts][batch]
        results = []
        for number in range(W.shape[0]):
            matrices, stop = [], 0
            for part, num_rows in enumerate(part_rows):
                rows = slice(stop, stop + num_rows)
                stop = rows.stop
                whole, rtn, error = (square[part][number] for square in figures)
                rtn_error, error = (value / whole if whole > 0 else 0.0 for value in (rtn, error))
                result = QuantizedMatrix(
                    codes=C[number, :, rows].T.contiguous(),
                    scales=S[number, :, rows].T.contiguous(),
                    method="gptq",
                    error=error,
                    rtn_error=rtn_error,
                    raised_damping=damping[number] if damping[number] > self.settings.damping else None,
                )
                if not factored[number]:
                    reason = "the Hessian is zero or could not be factored"
                elif error < rtn_error:
                    matrices.append(result)
                    continue
                else:
                    reason = f"its error {error:.3g} was not below round to nearest's"
                scales = plain[number, :, rows].T.contiguous()
                matrices.append(
                    replace(
                        result,
                        codes=round_to_grid(W[number, :, rows].T.contiguous(), scales),
                        scales=scales,
                        method="rtn",
                        error=rtn_error,
                        fallback=reason,
                        raised_damping=None,
                    )
                )
            results.append(matrices)
        return results


@dataclass(frozen=True, kw_only=True, slots=True)
class _Factors:
    order: Tensor
    R: Tensor
    damping: list[float]
    factored: list[bool]

    def added(self, H: Tensor) -> Tensor:
        """Return what damping adds to the diagonals; the mean more where no token touched a column.

        One more where H did not factor: what comes of that is not looked at, but must not divide by zero.
        """
        diagonal = H.diagonal(dim1=1, dim2=2)
        mean = diagonal.mean(1, keepdim=True)
        share = torch.tensor(self.damping, dtype=H.dtype, device=H.device).unsqueeze(1)
        unusable = torch.tensor([not ok for ok in self.factored], device=H.device).to(H.dtype).unsqueeze(1)
        return torch.where(diagonal == 0, mean, torch.zeros_like(mean)) + share * mean + unusable


def _refit(W: Tensor, C: Tensor, s: Tensor, D: Tensor, G: Tensor, square: Tensor) -> None:
    """Move one group's scales s [batch, out] to the least loss, where bf16 holds a better one."""
    c = C.to(D.dtype)
    slope = (c * G).sum(1)
    curvature = torch.bmm(square, c).mul_(c).sum(1)
    new = to_bf16_grid(s + slope / curvature.clamp_min(torch.finfo(D.dtype).tiny))
    step = new - s
    near = (new / s > 1 / LARGEST_STEP) & (new / s < LARGEST_STEP)
    better = near & (step * (step * curvature - 2 * slope) < 0)
    s.copy_(torch.where(better, new, s))
    torch.sub(W, c.mul_(s.unsqueeze(1)), out=D)


def audited_columns(part_rows: list[int], device: torch.device) -> Tensor:
    """Return the rows of `out` whose errors are recorded, those of each stacked matrix after another."""
    found, start = [], 0
    for num_rows in part_rows:
        found.append(start + audited_rows(num_rows, device))
        start += num_rows
    return torch.cat(found)


def weighted_square(D: Tensor, H: Tensor) -> Tensor:
    """Return each row's part of tr(D^T H D), float64 [batch, out]."""
    return torch.bmm(H, D).mul_(D).sum(1, dtype=torch.float64)


def _lose(W: Tensor, C: Tensor, S: Tensor, D: Tensor) -> None:
    """Put W - S C into D."""
    group_size = W.shape[1] // S.shape[1]
    for group in range(S.shape[1]):
        here = slice(group * group_size, (group + 1) * group_size)
        torch.sub(W[:, here], C[:, here] * S[:, group : group + 1], out=D[:, here])


def _lost_to_nearest(W: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Return what plain round to nearest loses, [batch, in, out]."""
    grouped = W.view(W.shape[0], -1, group_size, W.shape[2])
    scale = scales.unsqueeze(2)
    return (grouped / scale).round_().clamp_(-8, 7).mul_(scale).sub_(grouped).neg_().flatten(1, 2)


def _spans(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]
