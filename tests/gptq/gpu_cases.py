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
from moe4.gptq.descent import _refit
from moe4.gptq.factor import damped_factor
from moe4.gptq.gpu.columns import descend_group, solve_block
from moe4.gptq.gpu.factor import FactorBlock, factor_block_, factor_block_in_torch_, upper_factor_
from moe4.gptq.gpu.halves import permuted, power_of_two_below, split
from moe4.gptq.gpu.products import add_product_, gram, multiply
from moe4.gptq.gpu.scales import search_scales
from moe4.gptq.gpu.solver import BatchSolver, Precision, weighted_square
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


def operand(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("columns", "rows"), [(128, 33), (32, 5), (96, 70)])
def test_a_block_is_solved_as_in_float64(columns: int, rows: int, dtype: torch.dtype) -> None:
    """Targets within rounding of the middle of two codes may go either way, and then their row."""
    generator = torch.Generator().manual_seed(columns)
    size, first = columns + 32, 16
    W = torch.randn(2, size, rows, generator=generator)
    missed = torch.randn(2, columns, rows, generator=generator)
    S = torch.rand(2, size // 32, rows, generator=generator) * 0.2 + 0.05
    S *= torch.where(torch.rand(S.shape, generator=generator) < 0.5, -1, 1)
    order = torch.stack([torch.randperm(size, generator=generator) for _ in range(2)])
    here = order[:, first : first + columns]
    R = torch.eye(columns) + torch.randn(2, columns, columns, generator=generator).triu(1) / columns**0.5
    R = R.to(dtype).float()  # the codes of what was given
    g, left_scale = torch.tensor([8.0, 16.0]), torch.tensor([4.0, 0.5])
    exact_d = torch.stack([w[o] for w, o in zip(W, here, strict=True)]).double()
    w, exact_codes = exact_d.clone(), torch.empty(exact_d.shape, dtype=torch.int8)
    for number in range(2):
        arguments = (exact_d[number], missed[number].double(), exact_codes[number], S[number].double())
        _solve_block_in_torch(*arguments, here[number] // 32, R[number].double())
    # What lies around a view, and rows beyond the last, must stay as they are.
    lost = torch.full((2, size, rows), 7.0, device=DEVICE, dtype=dtype)
    left = lost.clone()
    codes = torch.full(W.shape, 99, dtype=torch.int8, device=DEVICE)
    places = slice(first, first + columns)
    solve_block(
        W.to(DEVICE),
        S.to(DEVICE),
        here.to(DEVICE),
        operand(R, dtype),
        (missed * g[:, None, None]).to(DEVICE),
        codes,
        lost[:, places],
        left[:, places],
        g.to(DEVICE),
        left_scale.to(DEVICE),
    )
    found = codes.cpu().gather(1, here[:, :, None].expand(-1, -1, rows))
    same = (found == exact_codes).all(1)
    assert same.float().mean() > (0.9 if dtype == torch.float32 else 0.5)
    assert (found == exact_codes).float().mean() > 0.97
    spacing = 2.0**-11 if dtype == torch.float16 else 1e-5
    d = lost[:, places].cpu().double() / g[:, None, None]
    assert (d - exact_d).abs().amax(1)[same].max() < spacing * exact_d.abs().max()
    exact_left = missed.double() + R.double().mT @ exact_d
    error = left[:, places].cpu().double() / left_scale[:, None, None] - exact_left
    assert error.abs().amax(1)[same].max() < 8 * spacing * w.abs().max()
    assert bool((codes.cpu().gather(1, order[:, :first, None].expand(-1, -1, rows)) == 99).all())
    for tensor in (lost, left):
        assert bool((tensor[:, :first] == 7).all())
        assert bool((tensor[:, first + columns :] == 7).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("group", "rows"), [(128, 33), (64, 70), (32, 5)])
def test_a_group_descends_as_in_float64(group: int, rows: int, dtype: torch.dtype) -> None:
    """Scales go to the bottom of their parabolas, then codes to their nearest, as in `gptq/descent.py`."""
    generator = torch.Generator().manual_seed(group)
    size = group + 32
    W = torch.randn(2, size, rows, generator=generator) * 0.3
    s = (torch.rand(2, rows, generator=generator) * 0.1 + 0.05).bfloat16().float()
    s[:, ::2] *= -1
    C = (W / (1.1 * s.unsqueeze(1))).round().clamp(-8, 7).to(torch.int8)  # on scales that are too small
    C[1, 32:, 1] = 0  # a group of zeros keeps its scale
    x = torch.randn(2, 3 * size, size, generator=generator)
    H = (x.mT @ x / size).to(dtype).float()
    D = (W - C * s.unsqueeze(1)).double()
    G = H.double() @ D
    here, g = slice(32, size), torch.tensor([8.0, 2.0])
    exact_s, exact_C, exact_d = (torch.empty_like(t) for t in (s, C, D))
    for number in range(2):
        exact_s[number], exact_C[number], exact_d[number] = descend_one_group(
            *(t[number] for t in (W, C, s, H, G)), here
        )
    codes, scales = C.clone().to(DEVICE), s.clone().to(DEVICE)
    change = torch.full(C.shape, 7.0, dtype=dtype, device=DEVICE)
    descend_group(
        operand(H, dtype)[:, here, here],
        (G * g[:, None, None]).float().to(DEVICE)[:, here],
        codes[:, here],
        scales,
        change[:, here],
        g.to(DEVICE),
        torch.empty(2, rows, device=DEVICE),
        torch.empty(2, group, rows, device=DEVICE),
    )
    assert (exact_s != s).float().mean() > 0.8
    assert (scales.cpu() == exact_s).float().mean() > 0.9
    assert scales[1, 1].cpu() == s[1, 1]
    assert torch.equal(codes[:, :32].cpu(), C[:, :32])
    assert bool((change[:, :32] == 7).all())
    same = (scales.cpu() == exact_s) & (codes.cpu() == exact_C)[:, here].all(1)
    assert same.float().mean() > (0.9 if dtype == torch.float32 else 0.6)
    error = (change.cpu().double() / g[:, None, None] - (exact_d - D))[:, here]
    assert error.abs().amax(1)[same].max() < 2.0**-10


def descend_one_group(
    W: Tensor, C: Tensor, s: Tensor, H: Tensor, G: Tensor, here: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (s, C, D) after one group's turn, in float64, by `gptq/descent.py`'s parts."""
    W, s, H = W.double(), s.double(), H.double()
    D = W - C * s
    square = H[here, here]
    missed = G[here] - square @ D[here]
    _refit(W[here], C[here], s, D[here], G[here], square)
    missed.addmm_(square.triu(1), D[here])
    D[here] = W[here]
    C = C.clone()
    groups = torch.zeros(len(square), dtype=torch.int64)
    _solve_block_in_torch(D[here], missed, C[here], s.unsqueeze(0), groups, square)
    return s.float(), C, D


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


def test_halves_make_products_close_to_float64() -> None:
    """Each operand keeps 22 bits, and low times low, 2^-22 of the product, is left out."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(2, 90, 90, generator=generator) for _ in range(2))
    exact = A.double() @ B.double()
    scale = power_of_two_below(torch.tensor([1000.0, 0.25], device=DEVICE))
    assert scale.tolist() == [512.0, 0.25]
    halves = []
    for x in (A, B):
        high, low = (torch.full((2, 92, 90), 7.0, dtype=torch.float16, device=DEVICE) for _ in range(2))
        split(x.to(DEVICE), scale, high[:, 1:-1], low[:, 1:-1])
        assert bool((high[:, ::91] == 7).all())
        assert bool((low[:, ::91] == 7).all())
        halves.append((high[:, 1:-1], low[:, 1:-1]))
    (a, a_low), (b, b_low) = halves
    result = multiply(a, b)
    rough = relative(result / scale[:, None, None] ** 2, exact)
    wide = torch.zeros(2, 90, 100, device=DEVICE)
    wide[:, :, 5:-5] = result
    add_product_(wide[:, :, 5:-5], a_low, b)
    add_product_(wide[:, :, 5:-5], a, b_low)
    assert relative(wide[:, :, 5:-5] / scale[:, None, None] ** 2, exact) < 2**-20
    assert 2**-14 < rough < 2**-10


def test_damping_goes_to_the_diagonal_and_large_numbers_stay_finite() -> None:
    x = torch.full((1, 3, 3), 1e6, device=DEVICE)
    high, low = (torch.empty(1, 3, 3, dtype=torch.float16, device=DEVICE) for _ in range(2))
    split(
        x, torch.full((1,), 2.0**-10, device=DEVICE), high, low, torch.tensor([[1e6, 0.0, 1e12]]).to(DEVICE)
    )
    value = (high.double() + low.double()).cpu() * 2**10
    assert value[0, 0, 0] == pytest.approx(2e6, rel=1e-6)
    assert value[0, 0, 1] == value[0, 1, 1] == pytest.approx(1e6, rel=1e-6)
    assert torch.isfinite(high[0, 2, 2])


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gram_is_close_to_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 70, generator=generator).to(dtype)
    exact = x.double().T @ x.double()
    found = gram(x.to(DEVICE)).cpu().double()
    assert float((found - exact).norm() / exact.norm()) < (1e-6 if dtype == torch.bfloat16 else 2**-16)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("factor_block", [factor_block_, factor_block_in_torch_])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_batch_is_factored_and_what_has_no_factor_is_named(
    dtype: torch.dtype, factor_block: FactorBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe4.gptq.gpu.factor.PANEL_COLUMNS", 64)
    monkeypatch.setattr("moe4.gptq.gpu.factor.SUM_COLUMNS", 48)
    good = [problem(1, 176, seed)[1] for seed in (3, 4)]
    bad = good[0] - 2 * float(torch.linalg.eigvalsh(good[0]).mean()) * torch.eye(176)
    A = torch.stack([good[0], bad, good[1]]).float()
    A.diagonal(dim1=1, dim2=2)[::2] += 0.01
    scale = torch.tensor([4.0, 1.0, 16.0])
    order = torch.stack(
        [torch.randperm(176, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    )
    diagonal = A.diagonal(dim1=1, dim2=2).gather(1, order)
    upper = permuted(A.to(DEVICE), order.to(DEVICE), diagonal.to(DEVICE), scale.to(DEVICE))
    R, pivots, fine = upper_factor_(upper, dtype, factor_block)
    assert fine.tolist() == [1, 0, 1]
    for start in range(0, 176, 64):  # what products of whole panels meet
        panel = R[[0, 2], start : start + 64, start : start + 64]
        assert not panel.tril(-1).any()
    for number in (0, 2):
        exact = A[number].double()[order[number]][:, order[number]] * float(scale[number])
        found = R[number].cpu().double().triu()
        assert relative(found @ found.T, exact) < (2**-11 if dtype == torch.float16 else 1e-6)
        in_float32 = upper[number].cpu().double().triu()
        assert relative(in_float32 @ in_float32.T, exact) < 1e-6
        assert torch.equal(pivots[number].cpu(), upper[number].diagonal().cpu())


def test_a_badly_conditioned_hessian_is_factored_as_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels a thousand times as large as others, explained by them: what the factor leaves is damping."""
    monkeypatch.setattr("moe4.gptq.gpu.factor.PANEL_COLUMNS", 64)
    size = 256
    H = problem(1, size, 12)[1]
    gains = torch.ones(size, dtype=torch.float64)
    gains[::50] = 1000
    H = gains[:, None] * H * gains
    diagonal = H.diagonal()
    order = torch.argsort(diagonal, descending=True)
    damped = diagonal + 0.03 * diagonal.mean()
    exact = H[order][:, order]
    exact.diagonal().copy_(damped[order])
    scale = power_of_two_below((2.0**27 / damped.sum()).sqrt().float().reshape(1)).to(DEVICE)
    upper = permuted(
        H.float()[None].to(DEVICE),
        order[None].to(DEVICE),
        damped[order].float()[None].to(DEVICE),
        scale.square(),
    )
    R, pivots, fine = upper_factor_(upper, torch.float16)
    assert fine.tolist() == [1]
    expected = torch.linalg.cholesky(exact.flip(0, 1)).flip(0, 1) * float(scale)
    assert (pivots.cpu()[0] / expected.diagonal() - 1).abs().max() < 1e-4
    assert relative(R[0].triu(), expected) < 2**-11


def test_errors_are_those_of_float64_without_damping() -> None:
    W, H = problem(20, 96, 13)
    added = torch.rand(1, 96, generator=torch.Generator().manual_seed(0))
    halves = [torch.empty(1, 96, 96, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    split(H.float()[None].to(DEVICE), torch.ones(1, device=DEVICE), *halves, added.to(DEVICE))
    found = weighted_square(
        W.T.float()[None].contiguous().to(DEVICE), (halves[0], halves[1]), added.to(DEVICE)
    )
    exact = torch.einsum("oi,ij,oj->o", W, H, W)
    assert (found.cpu()[0] / exact - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("precision", "size", "group_size", "sweeps"),
    [("float16", 256, 128, 1), ("float16", 64, 64, 2), ("float16", 96, 32, 2), ("float32", 64, 32, 1)],
)
def test_a_batch_is_quantized_as_the_cpu_does_it(
    precision: Precision, size: int, group_size: int, sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes may differ where sums tie; no matrix' error by more than 2 %, all by 0.2 % in the mean.

    The two solve one problem by sums in another order; of a row with a tie, all later codes may change, by
    which its error becomes as likely less as more.
    """
    monkeypatch.setattr("moe4.gptq.gpu.solver.OUTER_COLUMNS", 64)
    for module in ("solver", "factor"):
        monkeypatch.setattr(f"moe4.gptq.gpu.{module}.PANEL_COLUMNS", 64)
    monkeypatch.setattr("moe4.gptq.gpu.factor.BLOCK_COLUMNS", 16)
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
    assert (good.method, good.raised_damping) == ("gptq", None)
    assert (zero.method, zero.error) == ("rtn", zero.rtn_error)
    assert zero.fallback is not None
    plain = absmax_scales(W[1].T.contiguous().cpu(), 32)
    assert torch.equal(zero.scales.cpu(), plain)
    result = damped_factor(H[2].cpu(), torch.arange(64), settings.damping)
    assert result is not None
    assert raised.raised_damping == pytest.approx(result[1])


def test_the_size_of_a_hessian_changes_nothing() -> None:
    """A power of two is exact in every product: what a layer's inputs are multiplied by is no matter."""
    W, H = batch_of([problem(16, 64, 12), problem(16, 64, 13)])
    solver = BatchSolver(settings=Gptq(scale_candidates=4, descent_sweeps=1), group_size=32)
    expected = solver.quantize(W, H, [16])
    for factor in (2.0**-40, 2.0**30):
        for one, other in zip(expected, solver.quantize(W, H * factor, [16]), strict=True):
            assert torch.equal(one[0].codes, other[0].codes)
            assert torch.equal(one[0].scales, other[0].scales)
            assert other[0].error == pytest.approx(one[0].error, rel=1e-5)


def test_a_channel_that_is_never_used_leaves_the_rest_as_on_the_cpu() -> None:
    W, H = batch_of([problem(16, 64, 14)])
    H[0, 5] = H[0, :, 5] = 0
    settings = Gptq(scale_candidates=4, descent_sweeps=1)
    (found,) = BatchSolver(settings=settings, group_size=32).quantize(W, H, [16])[0]
    h = H[0].cpu()
    (expected,) = quantize_gptq([W[0].T.contiguous().cpu()], factorize(h, settings), 32, settings)
    assert (found.method, found.raised_damping) == ("gptq", None)
    assert found.error == pytest.approx(expected.error, rel=0.02)
    assert (found.codes.cpu() == expected.codes).float().mean() > 0.9


def test_members_of_a_batch_do_not_meet() -> None:
    problems = [problem(16, 64, seed) for seed in (10, 11)]
    settings = Gptq(scale_candidates=4, descent_sweeps=1)
    solver = BatchSolver(settings=settings, group_size=32)
    both = solver.quantize(*batch_of(problems), [16])
    swapped = solver.quantize(*batch_of(problems[::-1]), [16])
    for one, other in ((both[0], swapped[1]), (both[1], swapped[0])):
        assert torch.equal(one[0].codes, other[0].codes)
        assert torch.equal(one[0].scales, other[0].scales)
        assert one[0].error == other[0].error
