"""`rest: int4`: weights rounded to nearest in groups."""

import pytest
import torch

from moe4.checkpoint.packed import unpack
from moe4.kernels.reference import dequantize

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("group_size", [32, 128])
def test_codes_are_the_nearest_and_scales_are_searched(group_size: int) -> None:
    from moe4.vllm_plugin.rest.int4 import quantize_groups

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1100, 256, generator=generator) * torch.rand(1100, 1, generator=generator)
    weight = weight.to(torch.bfloat16)
    weight[3] = 0
    words, scales = quantize_groups(weight, group_size)
    assert (words.dtype, words.shape) == (torch.int32, (1100, 32))
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (1100, 256 // group_size))
    steps = scales.double().repeat_interleave(group_size, 1)
    nearest = (weight.double() / steps).round().clamp(-8, 7)
    # float32's division may fall on the other side of a half.
    assert bool(((unpack(words).double() - nearest).abs() <= 1).all())
    assert float((unpack(words).double() != nearest).double().mean()) < 1e-4
    assert not dequantize(words, scales, group_size)[3].any()
    # Less is lost than with the largest magnitude as the largest code.
    error = (dequantize(words, scales, group_size) - weight.double()).square().sum()
    grouped = weight.double().unflatten(1, (-1, group_size))
    plain = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 7.5
    plain_error = ((grouped / plain).round().clamp(-8, 7) * plain - grouped).square().sum()
    assert error < 0.95 * plain_error
