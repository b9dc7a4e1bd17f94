"""Descent against a naive float64 transcription, and what it can never do: raise the loss."""

import pytest
import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.gptq.descent import descend
from moe4.gptq.grid import absmax_scales, round_to_grid
from moe4.gptq.solver import factorize, quantize_gptq, solve
from moe4.recipe import Gptq


def problem(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and a Hessian of correlated inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    x = torch.randn(4 * size, size, generator=generator, dtype=torch.float64) @ mixing
    W = torch.randn(rows, size, generator=generator, dtype=torch.float64) / size**0.5
    return W, 2 / len(x) * x.T @ x


def naive_descent(W: Tensor, codes: Tensor, scales: Tensor, H: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Row by row, one scale and then one code at a time, each the best of all that there are."""
    codes, scales = codes.double(), scales.clone()
    group_size = W.shape[1] // scales.shape[1]

    def loss(row: int) -> float:
        d = W[row] - codes[row] * scales[row].repeat_interleave(group_size)
        return float(d @ H @ d)

    for row in range(W.shape[0]):
        for column in [c for _ in range(sweeps) for c in range(W.shape[1])]:
            group = column // group_size
            if column % group_size == 0:
                here = slice(column, column + group_size)
                c, old = codes[row, here], float(scales[row, group])
                d = W[row] - codes[row] * scales[row].repeat_interleave(group_size)
                step = (c @ H[here] @ d) / (c @ H[here, here] @ c)
                before = loss(row)
                scales[row, group] = (old + step).bfloat16().double()
                if loss(row) >= before or not 0.5 < float(scales[row, group]) / old < 2:
                    scales[row, group] = old
            losses = []
            for code in range(-8, 8):
                codes[row, column] = code
                losses.append(loss(row))
            codes[row, column] = losses.index(min(losses)) - 8
    return codes.to(torch.int8), scales


@pytest.mark.parametrize("sweeps", [1, 2])
def test_agrees_with_trying_every_code_of_every_column(sweeps: int) -> None:
    W, H = problem(4, 64)
    scales = absmax_scales(W, 32)
    codes = round_to_grid(W, scales)
    added = torch.linspace(0.01, 0.02, 64, dtype=torch.float64)
    found = descend(W, codes, scales, H, added, sweeps)
    expected = naive_descent(W, codes, scales, H + torch.diag(added), sweeps)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(found[0], codes)
    assert not torch.equal(found[1], scales)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_sweep_lowers_every_rows_loss(group_size: int) -> None:
    W, H = problem(40, 256, seed=group_size)
    W, H = W.float(), H.float()
    factor = factorize(H, Gptq())
    assert factor.R is not None
    scales = absmax_scales(W, group_size)
    codes = solve(W, scales, factor.R, factor.order)
    damped = H.double() + factor.added().double().diag()
    before = torch.full((40,), torch.inf, dtype=torch.float64)
    for _ in range(4):
        D = (W - dequantize(codes, scales)).double()
        loss = ((D @ damped) * D).sum(1)
        assert (loss <= before * (1 + 1e-5)).all()  # a tie may go either way in float32
        before = loss
        codes, scales = descend(W, codes, scales, H, factor.added(), 1)
    assert torch.equal(scales, scales.bfloat16().float())


def test_it_lowers_the_error_of_a_matrix() -> None:
    W, H = problem(64, 256)
    factor = factorize(H.float(), Gptq())
    errors = [
        quantize_gptq([W.float()], factor, 128, Gptq(descent_sweeps=sweeps))[0].error for sweeps in (0, 1, 3)
    ]
    assert errors[1] < 0.98 * errors[0]
    assert errors[2] < errors[1]


def test_a_group_of_zeros_stays_as_it_is() -> None:
    W, H = problem(3, 64)
    W[:, :32] = 0
    scales = absmax_scales(W, 32)
    codes = round_to_grid(W, scales)
    found_codes, found_scales = descend(W, codes, scales, H, torch.full((64,), 0.01).double(), 2)
    assert torch.isfinite(found_scales).all()
    assert (dequantize(found_codes, found_scales)[:, :32].abs() < 1e-30).all()
