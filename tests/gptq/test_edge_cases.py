"""What is defined for inputs that break GPTQ's assumptions (docs/quantization.md, Edge cases)."""

import pytest
import torch
from torch import Tensor

from moe4.gptq.grid import absmax_scales
from moe4.gptq.hessian import Hessian, shrink
from moe4.gptq.solver import QuantizedMatrix, factorize, quantize_gptq, quantize_rtn
from moe4.quantize.reporting.layer_record import matrix_record
from moe4.recipe import Gptq

SIZE, ROWS = 128, 24


def draw(rows: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed))


def hessian_of(x: Tensor) -> Tensor:
    hessian = Hessian(SIZE)
    hessian.add(x)
    return hessian.mean()


def quantize(H: Tensor, W: Tensor | None = None, **options: float) -> QuantizedMatrix:
    W = draw(ROWS, 1) if W is None else W
    settings = Gptq(**options)  # type: ignore[arg-type]
    return quantize_gptq([W], factorize(H, settings), 32, settings)[0]


def assert_sound(result: QuantizedMatrix) -> None:
    assert torch.isfinite(result.scales).all()
    assert (result.scales != 0).all()
    assert torch.equal(result.scales, result.scales.bfloat16().float())
    assert torch.isfinite(result.dequantize()).all()
    assert result.error <= result.rtn_error


def test_an_expert_with_no_token_is_solved_on_the_pool() -> None:
    pooled = hessian_of(draw(600, 2))
    result = quantize(shrink(hessian_of(draw(0, 3)), 0, pooled, 64))
    assert result.method == "gptq"
    assert torch.equal(result.codes, quantize(pooled).codes)


def test_an_expert_with_no_token_and_no_pool_is_rounded_to_nearest_by_name() -> None:
    result = quantize(shrink(hessian_of(draw(0, 3)), 0, hessian_of(draw(600, 2)), 0))
    assert result.method == "rtn"
    assert result.fallback == "the Hessian is zero or could not be factored"
    assert torch.equal(result.codes, quantize_rtn(draw(ROWS, 1), 32).codes)


@pytest.mark.parametrize("num_tokens", [1, 5, SIZE - 1])
@pytest.mark.parametrize("pool", [0, 64])
def test_fewer_tokens_than_columns(num_tokens: int, pool: int) -> None:
    x = draw(num_tokens, 4)
    H = shrink(hessian_of(x), num_tokens, hessian_of(draw(600, 2)), pool)
    result = quantize(H)
    assert_sound(result)
    assert result.method == "gptq"
    # With no pool H has no more than num_tokens directions, and the rest is free to make up for them.
    if not pool and num_tokens == 1:
        assert result.error < 0.01 * result.rtn_error


def test_the_pool_saves_directions_that_few_tokens_did_not_show() -> None:
    """On other tokens, an expert that saw five does better with the pool than without."""
    everything = draw(2000, 5) * torch.linspace(0.2, 3, SIZE)
    other = hessian_of(everything[1000:]).double()
    errors = []
    for pool in (0, 64):
        H = shrink(hessian_of(everything[:5]), 5, hessian_of(everything[:1000]), pool)
        D = (draw(ROWS, 1) - quantize(H).dequantize()).double()
        errors.append(float(((D @ other) * D).sum()))
    assert errors[1] < 0.9 * errors[0]


def test_dead_columns_round_to_nearest_and_leave_the_rest_alone() -> None:
    x = draw(600, 6)
    x[:, 32:64] = 0
    result = quantize(hessian_of(x))
    assert_sound(result)
    assert result.method == "gptq"
    W = draw(ROWS, 1)
    error = (W - result.dequantize())[:, 32:64].abs() / absmax_scales(W, 32)[:, 1:2]
    assert error.max() < 1.0  # about half a step of the grid, on a scale that was searched


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
def test_the_size_of_a_hessian_changes_nothing(factor: float) -> None:
    """A power of two is exact in every product: what a layer's inputs are multiplied by is no matter."""
    H = hessian_of(draw(600, 7))
    one, other = quantize(H), quantize(H * factor)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scales, other.scales)
    assert other.error == pytest.approx(one.error, rel=1e-6)
    assert one.raised_damping is None
    assert other.raised_damping is None


def test_a_hessian_that_is_not_positive_definite_takes_more_damping_or_falls_back_by_name() -> None:
    H = hessian_of(draw(600, 7))
    values, vectors = torch.linalg.eigh(H.double())
    values[0] = -0.05 * values.mean()
    slightly = ((vectors * values) @ vectors.T).float()
    factor = factorize(slightly, Gptq(damping=0.01))
    assert factor.R is not None
    assert factor.damping == pytest.approx(0.1)
    result = quantize(slightly, damping=0.01)
    assert_sound(result)
    assert matrix_record(result).raised_damping == pytest.approx(0.1)
    values[0] = -5 * values.mean()
    result = quantize(((vectors * values) @ vectors.T).float())
    assert result.method == "rtn"
    assert result.fallback == "the Hessian is zero or could not be factored"
    assert matrix_record(result).fallback == result.fallback


@pytest.mark.parametrize("where", ["inputs", "weights"])
def test_outliers_of_ten_thousand(where: str) -> None:
    x, W = draw(600, 8), draw(ROWS, 9)
    if where == "inputs":
        x[:, 5] *= 1e4
    else:
        W[3, 40] = 1e4
    result = quantize(hessian_of(x), W)
    assert_sound(result)
    assert result.method == "gptq"
    plain = (W - result.dequantize()).abs()
    if where == "weights":
        assert plain[3, 40] < 0.01 * 1e4
        rows = [row for row in range(ROWS) if row != 3]
        assert plain[rows].max() < 2.0  # one row's outlier touches no other row


def test_inputs_that_overflow_are_an_error_with_a_name() -> None:
    from moe4.errors import CalibrationError

    with pytest.raises(CalibrationError, match="NaN or Inf"):
        hessian_of(draw(10, 10, scale=1e30))
