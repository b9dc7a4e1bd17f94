"""What a layer computes, in float64, and its weights in bfloat16."""

import torch
from torch import Tensor

from experts.layer import Call, Layer
from moe4.kernels import fused_experts_reference
from moe4.kernels.reference import dequantize


def bf16_weights(layer: Layer, experts: int) -> tuple[Tensor, Tensor]:
    """Return the first experts' weights in bfloat16.

    w13 is [experts, 2 * inter, hidden], w2 [experts, hidden, inter].
    """
    pairs = (
        (layer.w13_packed[:experts], layer.w13_scale[:experts]),
        (layer.w2_packed[:experts], layer.w2_scale[:experts]),
    )
    w13, w2 = (
        torch.stack([dequantize(p, s, layer.group_size).bfloat16() for p, s in zip(*pair, strict=True)])
        for pair in pairs
    )
    return w13, w2


def reference(layer: Layer, call: Call, scale_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the result in float64, of the weights whose scales are held in `scale_dtype`."""
    x, topk_weights, topk_ids = call
    return fused_experts_reference(
        x,
        layer.w13_packed,
        layer.w13_scale.to(scale_dtype),
        layer.w2_packed,
        layer.w2_scale.to(scale_dtype),
        topk_weights,
        topk_ids,
        group_size=layer.group_size,
    )
