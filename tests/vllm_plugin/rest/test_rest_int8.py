"""`rest: int8`: 8-bit weights beside the routed experts, against float64."""

import pytest
import torch

pytestmark = pytest.mark.vllm


def random_weight(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    return weight.to(torch.bfloat16)


def test_codes_are_the_nearest() -> None:
    from moe4.vllm_plugin.rest.int8 import quantize_rows

    weight = random_weight(1500, 64)
    weight[3] = 0
    codes, scales = quantize_rows(weight)
    decoded = codes.double() * scales.double().unsqueeze(1)
    # Half a step, and for the row's largest what rounding the scale to bfloat16 (2^-9 of it) takes away.
    bound = scales.double() / 2 + 127 * scales.double() * 2.0**-8
    assert bool(((decoded - weight.double()).abs() <= bound.unsqueeze(1)).all())
    typical = (decoded - weight.double()).abs() / scales.double().unsqueeze(1)
    assert typical[weight[:, 0] != 0].mean() < 0.26  # of a step: a quarter on the average
    assert codes[3].eq(0).all()


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 40])
@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (96, 256), (2560, 256), (576, 512), (30, 100)])
def test_product_agrees_with_float64(
    monkeypatch: pytest.MonkeyPatch, kernel: bool, tokens: int, rows: int, columns: int
) -> None:
    """With moe4's kernel where it takes the shape and the processor, and with torch alone."""
    from moe4.vllm_plugin.rest import int8
    from moe4.vllm_plugin.rest.int8 import int8_linear, quantize_rows

    if not kernel:
        monkeypatch.setattr(int8, "has_int8_linear", lambda *_: False)
    codes, scales = quantize_rows(random_weight(rows, columns))
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    result = int8_linear(x, codes, scales)
    assert result.dtype == torch.bfloat16
    weight = codes.double() * scales.double().unsqueeze(1)
    expected = x.double() @ weight.T
    # Products are exact in float32, sums of up to 512 of them are within 512 * 2^-24 of their magnitudes; the
    # result is rounded to bfloat16 once, or twice where the scale comes after the product.
    magnitude = x.double().abs() @ weight.abs().T
    bound = columns * 2.0**-24 * magnitude + 2.1 * 2.0**-8 * expected.abs()
    assert bool(((result.double() - expected).abs() <= bound).all())
