"""GPTQ against a naive float64 transcription of the paper, and its errors against round to nearest."""

import pytest
import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.gptq.factor import damped_factor
from moe4.gptq.grid import absmax_scales, round_to_grid, search_scales
from moe4.gptq.hessian import Hessian, shrink
from moe4.gptq.solver import factorize, quantize_gptq, quantize_rtn, relative_error, solve
from moe4.recipe import Gptq


def correlated_tokens(num_tokens: int, size: int, seed: int = 0) -> Tensor:
    """Tokens as a network has them: correlated, with a few large channels."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    gains = torch.exp(torch.randn(size, generator=generator, dtype=torch.float64))
    return torch.randn(num_tokens, size, generator=generator, dtype=torch.float64) @ mixing * gains


def weights(rows: int, size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64) / size**0.5


def naive_gptq(W: Tensor, H: Tensor, scales: Tensor, order: Tensor, group_size: int) -> Tensor:
    """The paper's section 3 column by column: the update from the inverse of what H remains."""
    W, codes = W.clone(), torch.zeros_like(W)
    remaining = order.tolist()
    while remaining:
        j = remaining[0]
        inverse = torch.linalg.inv(H[remaining][:, remaining])
        s = scales[:, j // group_size]
        codes[:, j] = (W[:, j] / s).round().clamp(-8, 7)
        error = (W[:, j] - codes[:, j] * s) / inverse[0, 0]
        W[:, remaining] -= error[:, None] * inverse[0][None, :]
        remaining = remaining[1:]
    return codes.to(torch.int8)


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize(("size", "group_size"), [(96, 32), (192, 64), (256, 128)])
def test_agrees_with_the_paper_column_by_column(size: int, group_size: int, activation_order: bool) -> None:
    W = weights(12, size)
    hessian = Hessian(size, dtype=torch.float64)
    hessian.add(correlated_tokens(3 * size, size))
    H = hessian.mean()
    factor = factorize(H, Gptq(activation_order=activation_order))
    assert factor.R is not None
    scales = search_scales(W, H.diagonal(), group_size, signed=True, candidates=8, shrink=0.7)
    codes = solve(W, scales, factor.R, factor.order)
    assert torch.equal(codes, naive_gptq(W, damped(H, factor.damping), scales, factor.order, group_size))


def damped(H: Tensor, damping: float) -> Tensor:
    return H + damping * H.diagonal().mean() * torch.eye(H.shape[0], dtype=H.dtype)


def test_factor_is_the_inverse_of_the_papers() -> None:
    x = correlated_tokens(300, 64)
    H = 2 / 300 * x.T @ x
    order = torch.argsort(H.diagonal(), descending=True)
    result = damped_factor(H, order, 0.01)
    assert result is not None
    R, damping = result
    assert damping == 0.01
    U = torch.linalg.cholesky(torch.linalg.inv(damped(H, 0.01)[order][:, order]), upper=True)
    torch.testing.assert_close(R @ U, torch.eye(64, dtype=torch.float64), rtol=1e-9, atol=1e-10)
    assert torch.equal(R, R.triu())


def test_a_column_no_token_touched_rounds_to_nearest() -> None:
    x = correlated_tokens(300, 64)
    x[:, 7] = 0
    factor = factorize(2 / 300 * x.T @ x, Gptq())
    W = weights(8, 64)
    scales = absmax_scales(W, 32)
    assert factor.R is not None
    codes = solve(W, scales, factor.R, factor.order)
    assert torch.equal(codes[:, 7], round_to_grid(W, scales)[:, 7])


def test_hessian_is_the_mean_over_tokens_in_any_batching() -> None:
    x = correlated_tokens(50, 16)
    hessian = Hessian(16, dtype=torch.float64)
    hessian.add(x[:7])
    hessian.add(x[7:])
    torch.testing.assert_close(hessian.mean(), 2 / 50 * x.T @ x)
    weighted = Hessian(16, dtype=torch.float64)
    w = torch.linspace(0.1, 2, 50, dtype=torch.float64)
    weighted.add(x, w)
    torch.testing.assert_close(weighted.mean(), 2 * (x * w[:, None]).T @ x / w.sum())


def test_a_wide_hessian_is_symmetric_and_whole() -> None:
    x = correlated_tokens(40, 1100)
    hessian = Hessian(1100, dtype=torch.float64)
    hessian.add(x)
    torch.testing.assert_close(hessian.mean(), 2 / 40 * x.T @ x)


def test_shrinkage_weighs_by_tokens() -> None:
    own, pooled = torch.eye(3), 3 * torch.eye(3)
    assert torch.equal(shrink(own.clone(), 10, pooled, 0), own)
    assert torch.equal(shrink(own.clone(), 0, pooled, 5), pooled)
    torch.testing.assert_close(shrink(own.clone(), 30, pooled, 10), 1.5 * torch.eye(3))


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_beats_round_to_nearest_on_every_matrix_of_a_stack(group_size: int) -> None:
    size = 256
    x = correlated_tokens(2048, size).float()
    hessian = Hessian(size)
    hessian.add(x)
    factor = factorize(hessian.mean(), Gptq())
    matrices = [weights(40, size, seed=2).float(), weights(24, size, seed=3).float()]
    results = quantize_gptq(matrices, factor, group_size, Gptq())
    for W, result in zip(matrices, results, strict=True):
        assert result.method == "gptq"
        assert result.error < 0.5 * result.rtn_error
        # The recorded figure is the real output error on the tokens, by a route that never forms H.
        output_error = (x @ (W - result.dequantize()).T).square().sum() / (x @ W.T).square().sum()
        assert result.error == pytest.approx(float(output_error), rel=1e-3)
        assert torch.equal(result.scales, result.scales.bfloat16().float())
        assert result.codes.min() >= -8
        assert result.codes.max() <= 7


def test_stacking_changes_nothing() -> None:
    hessian = Hessian(128)
    hessian.add(correlated_tokens(500, 128).float())
    factor = factorize(hessian.mean(), Gptq())
    one, other = weights(16, 128, seed=4).float(), weights(16, 128, seed=5).float()
    stacked = quantize_gptq([one, other], factor, 64, Gptq())
    alone = quantize_gptq([other], factor, 64, Gptq())
    assert torch.equal(stacked[1].codes, alone[0].codes)
    assert torch.equal(stacked[1].scales, alone[0].scales)


def test_a_singular_hessian_takes_more_damping_and_a_zero_one_falls_back_by_name() -> None:
    W = weights(8, 64).float()
    x = correlated_tokens(3, 64).float()
    H = 2 / 3 * x.T @ x
    factor = factorize(H, Gptq(damping=1e-9))
    assert factor.R is not None
    assert factor.damping > 1e-9
    result = quantize_gptq([W], factorize(torch.zeros(64, 64), Gptq()), 32, Gptq())[0]
    assert result.method == "rtn"
    assert result.fallback is not None
    assert torch.equal(result.codes, quantize_rtn(W, 32).codes)


def test_a_matrix_gptq_cannot_better_falls_back_by_name() -> None:
    exact = torch.zeros(2, 32)
    result = quantize_gptq([exact], factorize(torch.eye(32), Gptq()), 32, Gptq())[0]
    assert result.method == "rtn"
    assert result.fallback is not None
    assert result.error == 0.0


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    assert damped_factor(torch.full((4, 4), float("nan")), torch.arange(4), 0.01) is None


class TestGrid:
    def test_signed_scales_let_minus_eight_serve_the_longer_side(self) -> None:
        W = torch.linspace(-0.5, 1.0, 32).view(1, 32)
        scales = search_scales(W, torch.ones(32), 32, signed=True, candidates=1, shrink=1.0)
        assert scales.item() == -0.125
        assert round_to_grid(W, scales)[0, -1] == -8
        unsigned = search_scales(W, torch.ones(32), 32, signed=False, candidates=1, shrink=1.0)
        assert unsigned.item() > 0

    def test_either_sign_may_serve_a_group(self) -> None:
        """A group whose longer side is best cut off: -8 serves the many at the other end."""
        W = torch.full((1, 32), -0.8)
        W[0, 1::2] = -0.4
        W[0, 0] = 0.82
        found = search_scales(W, torch.ones(32), 32, signed=True, candidates=32, shrink=0.6)
        assert found.item() == pytest.approx(
            0.1, abs=0.003
        )  # absmax is 0.109, and turning nothing is negative
        assert round_to_grid(W, found)[0, :3].tolist() == [7, -4, -8]

    def test_search_never_loses_to_absmax(self) -> None:
        W = weights(64, 256).float()
        importance = torch.rand(256)
        H = torch.diag(importance)
        plain = absmax_scales(W, 64)
        for signed in (False, True):
            found = search_scales(W, importance, 64, signed=signed, candidates=16, shrink=0.6)
            errors = [relative_error(W, dequantize(round_to_grid(W, s), s), H) for s in (found, plain)]
            assert errors[0] < errors[1]

    def test_importance_decides_the_scale(self) -> None:
        W = torch.full((1, 32), 0.1)
        W[0, 0] = 1.0
        likes_peak, likes_rest = torch.full((32,), 1e-6), torch.ones(32)
        likes_peak[0], likes_rest[0] = 1.0, 1e-6
        peak = search_scales(W, likes_peak, 32, signed=True, candidates=64, shrink=0.3)
        rest = search_scales(W, likes_rest, 32, signed=True, candidates=64, shrink=0.3)
        assert dequantize(round_to_grid(W, peak), peak)[0, 0] == pytest.approx(1.0, abs=1e-2)
        assert dequantize(round_to_grid(W, rest), rest)[0, 1] == pytest.approx(0.1, abs=2e-3)

    def test_a_group_of_zeros_keeps_a_usable_scale(self) -> None:
        W = torch.zeros(2, 64)
        result = quantize_rtn(W, 32)
        assert torch.isfinite(result.scales).all()
        assert (result.scales.bfloat16() != 0).all()
        assert torch.equal(result.dequantize(), W)
