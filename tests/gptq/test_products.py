"""Products in bf16: exact where they are said to be, and of no consequence to the loss where they are not."""

import pytest
import torch
from torch import Tensor

from moe4.errors import KernelError
from moe4.gptq.factor import damped_factor, times_factor
from moe4.gptq.hessian import Hessian
from moe4.gptq.products import HAS_BF16, add_gram, product_dtype
from moe4.gptq.solver import factorize, quantize_gptq
from moe4.recipe import Gptq

needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="needs a CPU with AVX512-BF16")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_dtype_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE4_PRODUCTS", "float32")
    assert product_dtype(torch.zeros(1)) == torch.float32
    monkeypatch.setenv("MOE4_PRODUCTS", "bf16")
    assert product_dtype(torch.zeros(1)) == torch.bfloat16
    assert product_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64
    monkeypatch.setenv("MOE4_PRODUCTS", "int8")
    with pytest.raises(KernelError, match="found 'int8'"):
        product_dtype(torch.zeros(1))


@needs_bf16
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 1), (2, 48), (7, 49), (1025, 96), (1500, 200)])
def test_gram_is_the_sum_of_products(num_tokens: int, size: int) -> None:
    x = (draw(num_tokens, size) * torch.exp(draw(size, seed=1))).bfloat16()
    total = torch.ones(size, size)
    add_gram(total, x)
    exact = 1 + x.double().T @ x.double()
    scale = 1 + x.double().abs().T @ x.double().abs()
    assert (((total - exact).abs() / scale).tril() < 1e-6).all()


@needs_bf16
def test_gram_does_not_depend_on_the_threads() -> None:
    x, totals = draw(300, 200).bfloat16(), []
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        totals.append(torch.zeros(200, 200))
        add_gram(totals[-1], x)
    torch.set_num_threads(threads)
    assert torch.equal(totals[0], totals[1])


@pytest.mark.parametrize("products", ["float32", "bf16"])
def test_a_hessian_of_bf16_tokens_is_the_exact_one(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE4_PRODUCTS", products)
    x = draw(5000, 130).bfloat16()
    hessian = Hessian(130)
    hessian.add(x[:4500])
    hessian.add(x[4500:])
    exact = 2 / 5000 * x.double().T @ x.double()
    H = hessian.mean()
    assert torch.equal(H, H.T)
    assert (H - exact).abs().max() < 1e-5 * exact.diagonal().max()


def correlated(size: int, num_tokens: int, outlier: float) -> Tensor:
    """A Hessian with a steep spectrum, channels of very different size, and some huge ones."""
    turn = torch.linalg.qr(draw(size, size, seed=2)).Q
    x = (draw(num_tokens, size) / torch.arange(1, size + 1)) @ turn * torch.exp(draw(size, seed=3))
    x[:, :4] *= outlier
    return 2 / num_tokens * x.T @ x


def test_times_factor_is_the_hessian_times_what_is_lost() -> None:
    H = correlated(256, 1000, 10).double()
    H = (H + H.T) / 2
    D = draw(256, 40).double()
    order = torch.argsort(H.diagonal(), descending=True)
    result = damped_factor(H, order, 0.01)
    assert result is not None
    R = result[0]
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(256, dtype=torch.float64)
    assert torch.allclose(times_factor(R, R.T @ D[order], order), damped @ D, rtol=1e-10)


@pytest.mark.parametrize("outlier", [1.0, 1e3])
@pytest.mark.parametrize("num_tokens", [200, 2000])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_rounding_products_to_bf16_does_not_raise_the_error(
    sweeps: int, num_tokens: int, outlier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    W, factor = draw(256, 640) / 25, factorize(correlated(640, num_tokens, outlier), Gptq())
    errors = {}
    for products in ("float32", "bf16"):
        monkeypatch.setenv("MOE4_PRODUCTS", products)
        errors[products] = quantize_gptq([W], factor, 128, Gptq(descent_sweeps=sweeps))[0].error
    assert errors["bf16"] < 1.005 * errors["float32"]
