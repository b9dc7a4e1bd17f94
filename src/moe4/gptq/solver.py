"""GPTQ (arXiv:2210.17323) on one matrix, with activation order and groups fixed before the permutation.

    W   [out, in]      weights
    H   [in, in]       Hessian of the output error (`hessian.py`)
    R   [in, in]       upper factor of the damped H in permuted order, H = R R^T (`factor.py`)
    D   [in, out]      d_j = w_j - Q(w_j), column by column, that later columns make up for

Differences from the paper: the update is written with R, the inverse of the paper's U; columns are taken by
falling diag(H), and undone at the end, so that no g_idx is stored; scales are fixed beforehand from the
original weights, with the error weighted by R_jj^2, what H leaves of a column's error once the columns after
it have made up for what they can; `descent.py` improves codes and scales afterwards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize, unpack
from moe4.gptq.columns import MAX_COLUMNS, solve_block
from moe4.gptq.descent import descend
from moe4.gptq.factor import damped_factor, times_factor, weighted_square
from moe4.gptq.grid import absmax_scales, round_to_grid, search_scales
from moe4.gptq.products import product_dtype
from moe4.recipe import Gptq

BLOCK_COLUMNS = MAX_COLUMNS
AUDITED_ROWS = 256  # of a matrix, whose errors stand for all
NOT_FACTORED = "the Hessian is zero or could not be factored"


@dataclass(frozen=True, kw_only=True, slots=True)
class Factor:
    """What all matrices that share one H share: one permutation and one factorization."""

    H: Tensor
    order: Tensor
    R: Tensor | None
    """None if H could not be factored even at the largest damping."""
    damping: float

    def added(self) -> Tensor:
        """Return what damping adds to the diagonal, [in]; the mean more where no token touched a column."""
        diagonal = self.H.diagonal()
        mean = diagonal.mean()
        return torch.where(diagonal == 0, mean, torch.zeros_like(mean)) + self.damping * mean

    def importance(self) -> Tensor:
        """Return R_jj^2 in the columns' own order, [in]."""
        assert self.R is not None
        importance = torch.empty_like(self.R.diagonal())
        importance[self.order] = self.R.diagonal().square()
        return importance


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedMatrix:
    """Codes int8 [out, in], scales float32 [out, in / group] that bf16 holds, and what they cost."""

    codes: Tensor
    scales: Tensor
    method: str
    """`gptq`; `rtn` where that was asked for or was not worse; `copy` of codes that were not changed."""
    error: float
    """tr((W - Q) H (W - Q)^T) / tr(W H W^T) over `Audit`'s rows; with H the identity if there was none."""
    rtn_error: float
    """The same for plain round to nearest."""
    fallback: str | None = None
    """Why GPTQ's result was not taken."""
    raised_damping: float | None = None
    """The damping it took to factor H, where that was more than was asked for."""

    def dequantize(self) -> Tensor:
        """Return the float32 weights that will be served."""
        return dequantize(self.codes, self.scales)


def factorize(H: Tensor, settings: Gptq) -> Factor:
    """Permute, damp and factor H once for all matrices that share it."""
    if settings.activation_order:
        order = torch.argsort(H.diagonal(), descending=True, stable=True)
    else:
        order = torch.arange(H.shape[0], device=H.device)
    result = damped_factor(H, order, settings.damping)
    R, damping = result if result is not None else (None, 0.0)
    return Factor(H=H, order=order, R=R, damping=damping)


def audited_rows(num_rows: int, device: torch.device) -> Tensor:
    """Return which rows of a matrix `Audit` takes."""
    count = min(num_rows, AUDITED_ROWS)
    return torch.arange(count, device=device) * num_rows // count


class Audit:
    """Errors of one matrix, over AUDITED_ROWS of its rows if it has more, evenly spaced, the same each time.

    All rows meet the same inputs, so some hundreds tell a mean to a per cent or two, for a fraction of the
    product with H that all of them would take.
    """

    def __init__(self, W: Tensor, H: Tensor | None = None) -> None:
        self._rows = audited_rows(W.shape[0], W.device)
        self._W, self._H = W[self._rows], H
        self._whole = weighted_square(self._W, H)

    def error(self, codes: Tensor, scales: Tensor) -> float:
        """Return `relative_error` of codes [out, in] and scales [out, in / group] on the audited rows."""
        Q = dequantize(codes[self._rows], scales[self._rows])
        return relative_error(self._W, Q, self._H, self._whole)


def quantize_rtn(W: Tensor, group_size: int, audit: Audit | None = None) -> QuantizedMatrix:
    """Round W, float32 [out, in], to nearest. Without an audit, errors are of W itself."""
    scales = absmax_scales(W, group_size)
    codes = round_to_grid(W, scales)
    error = (audit or Audit(W)).error(codes, scales)
    return QuantizedMatrix(codes=codes, scales=scales, method="rtn", error=error, rtn_error=error)


def keep_codes(words: Tensor, scales: Tensor) -> QuantizedMatrix:
    """Return a matrix of which the packed codes and scales are there already; nothing is lost."""
    return QuantizedMatrix(
        codes=unpack(words), scales=scales.float(), method="copy", error=0.0, rtn_error=0.0
    )


def quantize_gptq(
    matrices: list[Tensor], factor: Factor, group_size: int, settings: Gptq
) -> list[QuantizedMatrix]:
    """Quantize matrices, float32 [out_i, in], that share one input, as one stacked matrix.

    A matrix falls back to round to nearest where GPTQ has no smaller error, and says so.
    """
    audits = [Audit(W, factor.H) for W in matrices]
    plain = [quantize_rtn(W, group_size, audit) for W, audit in zip(matrices, audits, strict=True)]
    if factor.R is None:
        reason = NOT_FACTORED
        return [_with_fallback(result, reason) for result in plain]
    W = torch.cat(matrices)
    scales = search_scales(
        W,
        factor.importance(),
        group_size,
        signed=settings.signed_scales,
        candidates=settings.scale_candidates,
        shrink=settings.scale_shrink,
    )
    if settings.descent_sweeps:
        left = W.new_empty(W.shape[::-1], dtype=product_dtype(W))
        codes = solve(W, scales, factor.R, factor.order, left)
        gradient = times_factor(factor.R, left, factor.order)
        del left
        codes, scales = descend(W, codes, scales, factor.H, factor.added(), settings.descent_sweeps, gradient)
    else:
        codes = solve(W, scales, factor.R, factor.order)
    raised = factor.damping if factor.damping > settings.damping else None
    results, start = [], 0
    for original, rtn, audit in zip(matrices, plain, audits, strict=True):
        rows = slice(start, start + original.shape[0])
        start = rows.stop
        error = audit.error(codes[rows], scales[rows])
        if error < rtn.error:
            result = QuantizedMatrix(
                codes=codes[rows],
                scales=scales[rows],
                method="gptq",
                error=error,
                rtn_error=rtn.error,
                raised_damping=raised,
            )
        else:
            result = _with_fallback(rtn, not_below(error))
        results.append(result)
    return results


def solve(W: Tensor, scales: Tensor, R: Tensor, order: Tensor, left: Tensor | None = None) -> Tensor:
    """Return GPTQ's codes, int8 [out, in], on fixed scales [out, in / group].

    Writes R^T D to `left` [in, out], its rows in the order of R, if that is given: the loss is its square.

    Works on a transposed, permuted copy of W, so that a column is contiguous. What earlier blocks of columns
    left comes to a block in one product, with operands of `product_dtype`: in bf16 its error moves a column's
    target by some hundredths of a step (docs/log.md). Within a block `columns.py` takes the columns in turn.
    """
    num_columns = W.shape[1]
    D = W.T.contiguous()[order]
    groups = torch.div(order, num_columns // scales.shape[1], rounding_mode="floor")
    S = scales.T.contiguous()
    codes = torch.empty(D.shape, dtype=torch.int8, device=W.device)
    fast = product_dtype(W)
    lost = D if fast == D.dtype else torch.empty_like(D, dtype=fast)
    for start in range(0, num_columns, BLOCK_COLUMNS):
        here = slice(start, min(start + BLOCK_COLUMNS, num_columns))
        missed = (R[:start, here].to(fast).T @ lost[:start]).to(D.dtype)
        before = missed.clone() if left is not None else missed
        solve_block(D[here], missed, codes[here], S, groups[here], R[here, here])
        lost[here] = D[here]
        if left is not None:
            left[here] = before.addmm_(R[here, here].T, D[here])
    return codes[torch.argsort(order)].T.contiguous()


def not_below(error: float) -> str:
    """Return why a matrix with this error falls back to round to nearest."""
    return f"its error {error:.3g} was not below round to nearest's"


def relative_error(W: Tensor, Q: Tensor, H: Tensor | None, whole: float | None = None) -> float:
    """Return tr((W - Q) H (W - Q)^T) / tr(W H W^T); H is the identity if None. Zero for a matrix of zeros.

    `whole` is the denominator, if it is known.
    """
    whole = weighted_square(W, H) if whole is None else whole
    return weighted_square(W - Q, H) / whole if whole > 0 else 0.0


def _with_fallback(result: QuantizedMatrix, reason: str) -> QuantizedMatrix:
    return QuantizedMatrix(
        codes=result.codes,
        scales=result.scales,
        method="rtn",
        error=result.error,
        rtn_error=result.rtn_error,
        fallback=reason,
    )
