"""GPTQ of a batch of matrices of one shape, on a GPU: the rules of `gptq/solver.py` and `gptq/descent.py`.

    W       [batch, in, out]   weights, transposed; a column of a matrix is contiguous
    H       [batch, in, in]    Hessians; `added` [batch, in], what damping adds to their diagonals
    R       [batch, in, in]    upper factors of the damped H in permuted order; operands (`columns.py`)
    D       [batch, in, out]   what is lost, w - s c
    G       [batch, in, out]   half the gradient of the loss, (H + added) D
    C       [batch, in, out]   codes, int8
    S       [batch, groups, out] scales

Products that decide codes have operands in float16, 11 bits: their errors move a column's target by some
thousandths of a step. Powers of two keep each matrix' operands in range: `c` those of R, `h` of H, `g` of D.

The long products take OUTER_COLUMNS columns at a time; what the blocks of columns within those do to each
other is made up for in short ones.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from moe4.checkpoint.packed import CODE_MAX, CODE_MIN
from moe4.gptq.factor import damped_factor
from moe4.gptq.gpu.columns import MAX_COLUMNS, descend_group, solve_block
from moe4.gptq.gpu.factor import PANEL_COLUMNS, spans, upper_factor_
from moe4.gptq.gpu.halves import permuted, power_of_two_below, split
from moe4.gptq.gpu.products import add_product_, multiply
from moe4.gptq.gpu.scales import search_scales
from moe4.gptq.grid import round_to_grid, scale_factors
from moe4.gptq.solver import NOT_FACTORED, QuantizedMatrix, audited_rows, not_below
from moe4.recipe import Gptq

OUTER_COLUMNS = 512
Precision = Literal["float16", "float32"]

Stage = Callable[[str], AbstractContextManager[None]]


def no_stage(_: str) -> AbstractContextManager[None]:
    """Do not time a stage."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSolver:
    """How batches are solved."""

    settings: Gptq
    group_size: int
    precision: Precision = "float16"
    """Of the operands of products in which codes are computed; factors and errors are exact to 22 bits."""
    stage: Stage = no_stage
    """Enters a context around each named stage; for benchmarks."""

    def quantize(self, W: Tensor, H: Tensor, part_rows: list[int]) -> list[list[QuantizedMatrix]]:
        """Quantize a batch; `part_rows` says how many rows of `out` each stacked matrix has.

        Returns each batch member's matrices. Peak memory: twice H and three times W beside the two.
        """
        stage = self.stage
        with stage("factor"):
            factors = self._factorize(H)
        with stage("scales"):
            S, plain = self._search(W, factors)
        g = power_of_two_below(32.0 / S.abs().amax((1, 2)))  # losses are less than a hundred scales
        with stage("solve"):
            C, G = self._solve(W, S, factors, g)
        factors.drop_factor()
        with stage("errors"):
            high, low = torch.empty_like(H, dtype=self.dtype), None
            if self.precision != "float32":
                low = torch.empty_like(high)
            split(H, factors.h, high, low, factors.added)
        with stage("descent"):
            self._descend(C, S, G, high, g)
        del G
        with stage("errors"):
            squares = self._squares(W, C, S, plain, part_rows, (high, low), factors, g)
            del high, low
        with stage("collect"):
            return self._collect(W, C, S, plain, squares, factors, part_rows)

    def warm_up(self, device: torch.device) -> None:
        """Compile the kernels, by a small batch of no meaning, so that the first one need not wait for them.

        Takes some seconds of the processor's time, of which a thread of its own can make use.
        """
        with torch.inference_mode():
            W = torch.linspace(-1, 1, 2 * MAX_COLUMNS * 64, device=device, dtype=torch.float32).view(
                1, 2 * MAX_COLUMNS, 64
            )
            self.quantize(
                W, torch.eye(2 * MAX_COLUMNS, device=device, dtype=torch.float32).unsqueeze(0), [64]
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of operands."""
        return torch.float16 if self.precision == "float16" else torch.float32

    def _factorize(self, H: Tensor) -> "_Factors":
        """Permute, damp and factor all of H; what does not factor so, alone, as `factor.py` does."""
        settings = self.settings
        batch, size, _ = H.shape
        diagonal = H.diagonal(dim1=1, dim2=2)
        if settings.activation_order:
            order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
        else:
            order = torch.arange(size, device=H.device).repeat(batch, 1)
        mean = diagonal.mean(1, keepdim=True)
        kept = torch.where(diagonal == 0, mean, diagonal)
        damped = kept + settings.damping * mean
        trace = damped.sum(1)
        trace = torch.where((trace > 0) & torch.isfinite(trace), trace, 1.0)
        c = power_of_two_below((2.0**27 / trace).sqrt())  # entries of R are below 2^14
        R, pivots, good = upper_factor_(permuted(H, order, damped.gather(1, order), c * c), self.dtype)
        factors = _Factors(
            order=order,
            R=R,
            pivots=pivots,
            c=c,
            h=power_of_two_below(2.0**14 / trace),
            added=damped - diagonal,
            damping=[settings.damping] * batch,
            factored=[True] * batch,
        )
        fine = ((good > 0) & torch.isfinite(pivots).all(1) & (mean[:, 0] > 0)).tolist()
        for number in range(batch):
            if not fine[number]:
                self._factor_alone(H, number, kept - diagonal, factors)
        return factors

    def _factor_alone(self, H: Tensor, number: int, empty: Tensor, factors: "_Factors") -> None:
        """Factor one Hessian with more damping; `empty` [batch, in] goes to columns that no token touched.

        What does not factor even so gets a 1 on its diagonal: what comes of that is not looked at, but must
        not divide by zero.
        """
        R, result = factors.R, damped_factor(H[number], factors.order[number], self.settings.damping)
        if result is None:
            factors.factored[number], factors.damping[number] = False, 0.0
            R[number].zero_().fill_diagonal_(1.0)
            factors.added[number] = empty[number] + 1
            factors.pivots[number] = 1
            return
        upper, factors.damping[number] = result
        R[number] = upper.triu() * factors.c[number]
        factors.pivots[number] = upper.diagonal() * factors.c[number]
        factors.added[number] = empty[number] + factors.damping[number] * H[number].diagonal().mean()

    def _search(self, W: Tensor, factors: "_Factors") -> tuple[Tensor, Tensor]:
        settings = self.settings
        tried = scale_factors(
            signed=settings.signed_scales, candidates=settings.scale_candidates, shrink=settings.scale_shrink
        )
        importance = torch.empty_like(factors.pivots).scatter_(1, factors.order, factors.pivots.square())
        return search_scales(
            W, importance, self.group_size, _on_device(tried, W.device), signed=settings.signed_scales
        )

    def _solve(self, W: Tensor, S: Tensor, factors: "_Factors", g: Tensor) -> tuple[Tensor, Tensor]:
        """Return GPTQ's codes on fixed scales, and G, times h g; G is empty where no sweep follows."""
        R, order = factors.R, factors.order
        batch, size, num_rows = W.shape
        codes = torch.empty(W.shape, dtype=torch.int8, device=W.device)
        lost = torch.empty_like(W, dtype=self.dtype)
        left = torch.empty_like(lost)  # R^T D
        left_scale = g * factors.h / factors.c.square()
        for start, stop in spans(0, size, OUTER_COLUMNS):
            if start:
                missed = multiply(R[:, :start, start:stop].mT, lost[:, :start])
            else:
                missed = torch.zeros(batch, stop, num_rows, device=W.device, dtype=torch.float32)
            for first, last in spans(start, stop, MAX_COLUMNS):
                here, block = slice(first, last), slice(first - start, last - start)
                solve_block(
                    W,
                    S,
                    order[:, here],
                    R[:, here, here],
                    missed[:, block],
                    codes,
                    lost[:, here],
                    left[:, here],
                    g,
                    left_scale,
                )
                if last < stop:
                    add_product_(missed[:, block.stop :], R[:, here, last:stop].mT, lost[:, here])
        del lost
        if not self.settings.descent_sweeps:
            return codes, W.new_empty(0)
        G = torch.empty_like(W)
        places = order + size * torch.arange(batch, device=W.device).unsqueeze(1)
        for start, stop in spans(0, size, PANEL_COLUMNS):
            rows = multiply(R[:, start:stop, start:], left[:, start:])
            G.view(-1, num_rows).index_copy_(0, places[:, start:stop].flatten(), rows.flatten(0, 1))
        return codes, G

    def _descend(self, C: Tensor, S: Tensor, G: Tensor, H: Tensor, g: Tensor) -> None:
        """Pass over the groups `descent_sweeps` times; updates C and S. H, an operand, is damped.

        G of a block of columns hears of changes when its turn comes: in the first sweep of those before it,
        in later ones of this sweep's before it and the last one's after it. Within the block it hears of a
        group's change at once, but for the groups before that one and itself, which hear of it at the end.
        """
        batch, size, num_rows = C.shape
        change = torch.empty(C.shape, dtype=H.dtype, device=C.device)
        was = torch.empty(batch, num_rows, device=C.device, dtype=torch.float32)
        missed = torch.empty(batch, self.group_size, num_rows, device=C.device, dtype=torch.float32)
        outer = max(OUTER_COLUMNS, self.group_size)
        groups = torch.arange(outer, device=C.device) // self.group_size
        at_the_end = (groups.unsqueeze(1) <= groups).to(H.dtype)
        sweeps = self.settings.descent_sweeps
        for sweep in range(sweeps):
            for start, stop in spans(0, size, outer):
                own = slice(start, stop)
                if sweep:
                    change[:, own].zero_()
                if sweep or start:
                    heard = slice(size if sweep else start)
                    add_product_(G[:, own], H[:, own, heard], change[:, heard])
                for first, last in spans(start, stop, self.group_size):
                    here = slice(first, last)
                    s = S[:, first // self.group_size]
                    descend_group(
                        H[:, here, here], G[:, here], C[:, here], s, change[:, here], g, was, missed
                    )
                    if last < stop:
                        add_product_(G[:, last:stop], H[:, last:stop, here], change[:, here])
                if sweep + 1 < sweeps:
                    square = H[:, own, own] * at_the_end[: stop - start, : stop - start]
                    add_product_(G[:, own], square, change[:, own])

    def _squares(
        self,
        W: Tensor,
        C: Tensor,
        S: Tensor,
        plain: Tensor,
        part_rows: list[int],
        H: tuple[Tensor, Tensor | None],
        factors: "_Factors",
        g: Tensor,
    ) -> Tensor:
        """Return w^T H w of audited rows, of what rounding them to nearest loses, and of D.

        Float64 [3, batch, rows], times h g^2. `H` are the operands of the damped H.
        """
        rows = audited_columns(part_rows, W.device)
        audited, scales, nearest = (t.index_select(2, rows) for t in (W, S, plain))
        codes = C.index_select(2, rows)
        served = (codes.view(len(W), -1, self.group_size, len(rows)) * scales.unsqueeze(2)).flatten(1, 2)
        lost_to_nearest = _lost_to_nearest(audited, nearest, self.group_size)
        X = torch.cat([audited, lost_to_nearest, audited - served], 2).mul_(g[:, None, None])
        return torch.stack(
            torch.split(weighted_square(X, H, factors.added * factors.h.unsqueeze(1)), len(rows), 1)
        )

    def _collect(
        self,
        W: Tensor,
        C: Tensor,
        S: Tensor,
        plain: Tensor,
        squares: Tensor,
        factors: "_Factors",
        part_rows: list[int],
    ) -> list[list[QuantizedMatrix]]:
        audited = [len(audited_rows(num_rows, W.device)) for num_rows in part_rows]
        sums = [[part.sum(1) for part in torch.split(square, audited, dim=1)] for square in squares]
        figures = torch.stack([torch.stack(parts) for parts in sums]).tolist()  # [3][parts][batch]
        damping = factors.damping
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
                if not factors.factored[number]:
                    reason = NOT_FACTORED
                elif error < rtn_error:
                    matrices.append(result)
                    continue
                else:
                    reason = not_below(error)
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


@dataclass(kw_only=True, slots=True)
class _Factors:
    order: Tensor
    """int64 [batch, in]: which column comes when."""
    R: Tensor
    """An operand, times `c`."""
    pivots: Tensor
    """The diagonal of R times `c`, float32 [batch, in]."""
    c: Tensor
    h: Tensor
    added: Tensor
    """What damping adds to the diagonals; the mean more where no token touched a column."""
    damping: list[float]
    factored: list[bool]

    def drop_factor(self) -> None:
        """Free R's memory."""
        self.R = self.pivots


def audited_columns(part_rows: list[int], device: torch.device) -> Tensor:
    """Return the rows of `out` whose errors are recorded, those of each stacked matrix after another."""
    found, start = [], 0
    for num_rows in part_rows:
        found.append(start + audited_rows(num_rows, device))
        start += num_rows
    return torch.cat(found)


def weighted_square(D: Tensor, H: tuple[Tensor, Tensor | None], added: Tensor) -> Tensor:
    """Return each row's part of tr(D^T (H - added) D), float64 [batch, out]; D in float32, operands of H.

    `added` [batch, in] is subtracted from H's diagonal. Values of D are at most 2^14. To some 22 bits.
    """
    high, low = H
    if low is None:
        product = torch.bmm(high, D)
    else:
        D_high, D_low = (torch.empty_like(D, dtype=high.dtype) for _ in range(2))
        split(D, torch.ones_like(added[:, 0]), D_high, D_low)
        product = multiply(low, D_high)
        add_product_(product, high, D_low)
        add_product_(product, high, D_high)
    product.addcmul_(added.unsqueeze(2), D, value=-1)
    return product.mul_(D).sum(1, dtype=torch.float64)


def _on_device(values: list[float], device: torch.device) -> Tensor:
    """Return values, float32, on a device, without waiting for it."""
    tensor = torch.tensor(values, dtype=torch.float32)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _lost_to_nearest(W: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Return what plain round to nearest loses, [batch, in, out]."""
    grouped = W.view(W.shape[0], -1, group_size, W.shape[2])
    scale = scales.unsqueeze(2)
    return (
        (grouped / scale).round_().clamp_(CODE_MIN, CODE_MAX).mul_(scale).sub_(grouped).neg_().flatten(1, 2)
    )
