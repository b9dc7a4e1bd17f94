"""The GPU's solver against the CPU's and float64; `test_gpu_solver.py` runs this in a process of its own.

On a CPU, with TRITON_INTERPRET=1, Triton's interpreter runs the kernels; on a machine with a GPU

    python -m pytest tests/gptq/gpu_cases.py

runs them there.
"""

import os

import pytest
import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.gptq.columns import _solve_block_in_torch
from moe4.gptq.factor import damped_factor
from moe4.gptq.gpu.kernels import search_scales, solve_block
from moe4.gptq.gpu.products import Precision, cholesky_, gram, product
from moe4.gptq.gpu.solver import BatchSolver
from moe4.gptq.grid import absmax_scales, scale_factors
from moe4.gptq.grid import search_scales as search_one
from moe4.gptq.solver import QuantizedMatrix, audited_rows, factorize, quantize_gptq, relative_error
from moe4.recipe import Gptq

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def problem(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights [rows, size] and the Hessian of correlated inputs with a few large channels, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    gains = torch.exp(torch.randn(size, generator=generator, dtype=torch.float64))
    x = torch.randn(2 * size, size, generator=generator, dtype=torch.float64) @ mixing * gains
    W = torch.randn(rows, size, generator=generator, dtype=torch.float64) / size**0.5
    return W, 2 / x.shape[0] * x.T @ x


def batch_of(problems: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return W [batch, in, out] and H [batch, in, in] as the solver takes them."""
    W = torch.stack([W.T for W, _ in problems]).float().contiguous().to(DEVICE)
    return W, torch.stack([H for _, H in problems]).float().to(DEVICE)


@pytest.mark.parametrize(("columns", "rows"), [(128, 33), (32, 5), (96, 70)])
def test_a_block_is_solved_as_in_float64(columns: int, rows: int) -> None:
    """Targets within float32 rounding of the middle of two codes may go either way, and then their row."""
    generator = torch.Generator().manual_seed(columns)
    W, missed = (torch.randn(2, columns, rows, generator=generator) for _ in range(2))
    S = torch.rand(2, 3, rows, generator=generator) * 0.2 + 0.05
    S *= torch.where(torch.rand(S.shape, generator=generator) < 0.5, -1, 1)
    groups = torch.randint(0, 3, (2, columns), generator=generator, dtype=torch.int32)
    R = torch.eye(columns) + torch.randn(2, columns, columns, generator=generator).triu(1) / columns**0.5
    exact_d, exact_codes = W.double(), torch.empty(W.shape, dtype=torch.int8)
    for number in range(2):
        arguments = (exact_d[number], missed[number].double(), exact_codes[number], S[number].double())
        _solve_block_in_torch(*arguments, groups[number], R[number].double())
    # What lies around a view, and rows beyond the last, must stay as they are.
    wide = torch.full((2, columns + 2, rows), 7.0, device=DEVICE)
    D = wide[:, 1:-1]
    D.copy_(W)
    codes = torch.full(W.shape, 99, dtype=torch.int8, device=DEVICE)
    solve_block(D, missed.to(DEVICE), codes, S.to(DEVICE), groups.to(DEVICE), R.to(DEVICE))
    same = (codes.cpu() == exact_codes).all(1)
    assert same.float().mean() > 0.9
    close = (D.cpu().double() - exact_d).abs().amax(1)[same]
    assert close.max() < 1e-5  # d is a weight less a code's multiple of a scale: one rounding of order 1
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert bool((wide[:, 0] == 7).all())
    assert bool((wide[:, -1] == 7).all())


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("group_size", [32, 128])
def test_the_same_scales_as_the_cpu(group_size: int, signed: bool) -> None:
    problems = [problem(37, 256, seed) for seed in (1, 2)]
    W, H = batch_of(problems)
    W[1, :group_size, 3] = 0
    importance = H.diagonal(dim1=1, dim2=2).contiguous()
    factors = scale_factors(signed=signed, candidates=12, shrink=0.6)
    tried = torch.tensor(factors, device=DEVICE)
    best, plain = search_scales(W, importance, group_size, tried, signed=signed)
    for number in range(2):
        w = W[number].T.contiguous().cpu()
        assert torch.equal(plain[number].T.cpu(), absmax_scales(w, group_size))
        expected = search_one(
            w, importance[number].cpu(), group_size, signed=signed, candidates=12, shrink=0.6
        )
        assert (best[number].T.cpu() != expected).float().mean() < 0.01  # candidates that tie in float32
        if not signed:
            assert best[number].min() > 0


def test_split_products_are_close_to_float64_and_closer_than_bf16() -> None:
    """Each operand keeps 16 bits, and low times low, 2^-16 of the product, is left out."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(2, 90, 90, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = A @ B
    found: dict[Precision, float] = {}
    for precision in ("float32", "bf16x3"):
        result = product(A.float().to(DEVICE), B.float().to(DEVICE), precision).cpu().double()
        found[precision] = float((result - exact).norm() / exact.norm())
    rough = float(((A.bfloat16().double() @ B.bfloat16().double()) - exact).norm() / exact.norm())
    assert found["float32"] < 1e-6
    assert found["bf16x3"] < 2**-16
    assert rough > 100 * found["bf16x3"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gram_is_close_to_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 70, generator=generator).to(dtype)
    exact = x.double().T @ x.double()
    found = gram(x.to(DEVICE)).cpu().double()
    assert float((found - exact).norm() / exact.norm()) < (1e-6 if dtype == torch.bfloat16 else 2**-16)
    assert torch.equal(found, found.T)


def test_cholesky_of_a_batch_names_what_does_not_factor() -> None:
    good = [problem(1, 300, seed)[1] for seed in (3, 4)]
    bad = good[0] - 2 * float(torch.linalg.eigvalsh(good[0]).mean()) * torch.eye(300)
    A = torch.stack([good[0], bad, good[1]]).float().to(DEVICE)
    A.diagonal(dim1=1, dim2=2)[::2] += 0.01
    L = A.clone()
    assert cholesky_(L).tolist() == [True, False, True]
    for number in (0, 2):
        lower = L[number].tril().double()
        exact = A[number].double()
        assert float((lower @ lower.T - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize(
    ("precision", "size", "group_size", "sweeps"),
    [("bf16x3", 256, 128, 1), ("bf16x3", 64, 64, 2), ("bf16x3", 96, 32, 2), ("float32", 96, 32, 2)],
)
def test_a_batch_is_quantized_as_the_cpu_does_it(
    precision: Precision, size: int, group_size: int, sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes may differ where sums tie; no matrix' error by more than 2 %, all by 0.2 % in the mean.

    The two solve one problem by sums in another order; of a row with a tie, all later codes may change, by
    which its error becomes as likely less as more.
    """
    monkeypatch.setattr("moe4.gptq.gpu.solver.OUTER_COLUMNS", 64)
    monkeypatch.setattr("moe4.gptq.solver.AUDITED_ROWS", 16)  # fewer than the first part's
    settings = Gptq(scale_candidates=6, descent_sweeps=sweeps)
    problems = [problem(32, size, seed) for seed in (5, 6)]
    W, H = batch_of(problems)
    solver = BatchSolver(settings=settings, group_size=group_size, precision=precision)
    found = solver.quantize(W, H, [20, 12])
    ratios = []
    for number in range(2):
        w, h = W[number].T.contiguous().cpu(), H[number].cpu()
        parts = list(w.split([20, 12]))
        expected = quantize_gptq(parts, factorize(h, settings), group_size, settings)
        for part, ours, theirs in zip(parts, found[number], expected, strict=True):
            assert ours.method == "gptq"
            check_figures(part, h, ours)
            assert ours.rtn_error == pytest.approx(theirs.rtn_error, rel=1e-3)
            assert ours.error == pytest.approx(theirs.error, rel=0.02)
            assert (ours.codes.cpu() == theirs.codes).float().mean() > 0.9
            ratios.append(ours.error / theirs.error)
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.005)


def check_figures(W: Tensor, H: Tensor, result: QuantizedMatrix) -> None:
    """Hold the recorded errors to float64 ones, of the audited rows of what was returned."""
    codes, scales = result.codes.cpu(), result.scales.cpu()
    assert torch.equal(scales, scales.bfloat16().float())
    rows = audited_rows(len(W), W.device)
    exact = relative_error(W.double()[rows], dequantize(codes, scales).double()[rows], H.double())
    assert result.error == pytest.approx(exact, rel=1e-4)


def test_what_does_not_factor_or_gain_falls_back_by_name() -> None:
    W, H = batch_of([problem(16, 64, 7), problem(16, 64, 8), problem(16, 64, 9)])
    H[1] = 0
    H[2] -= 0.5 * torch.eye(64, device=DEVICE) * H[2].diagonal().mean()  # needs more damping than was asked
    settings = Gptq(scale_candidates=4, descent_sweeps=1)
    good, zero, raised = (
        part[0] for part in BatchSolver(settings=settings, group_size=32).quantize(W, H, [16])
    )
    assert good.method == "gptq"
    assert (zero.method, zero.error) == ("rtn", zero.rtn_error)
    assert zero.fallback is not None
    plain = absmax_scales(W[1].T.contiguous().cpu(), 32)
    assert torch.equal(zero.scales.cpu(), plain)
    result = damped_factor(H[2].cpu(), torch.arange(64), settings.damping)
    assert result is not None
    assert raised.raised_damping == pytest.approx(result[1])


def test_members_of_a_batch_do_not_meet() -> None:
    problems = [problem(24, 96, seed) for seed in (10, 11)]
    settings = Gptq(scale_candidates=4, descent_sweeps=1)
    solver = BatchSolver(settings=settings, group_size=32)
    both = solver.quantize(*batch_of(problems), [24])
    swapped = solver.quantize(*batch_of(problems[::-1]), [24])
    for one, other in ((both[0], swapped[1]), (both[1], swapped[0])):
        assert torch.equal(one[0].codes, other[0].codes)
        assert torch.equal(one[0].scales, other[0].scales)
        assert one[0].error == other[0].error
