"""The forwards that are compared, each on weights laid out as it wants them."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from experts.layer import Forward, Layer
from moe4.kernels import fused_experts
from moe4.kernels.reference import unpack_codes


def moe4(layer: Layer, path: str) -> Forward:
    def forward(x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        return fused_experts(
            x,
            layer.w13_packed,
            layer.w13_scale,
            layer.w2_packed,
            layer.w2_scale,
            topk_weights,
            topk_ids,
            group_size=layer.group_size,
            path=path,
        )

    return forward


def by_expert(gate_up: Callable[[int, Tensor], Tensor], down: Callable[[int, Tensor], Tensor]) -> Forward:
    """Return the forward that gathers each expert's tokens and multiplies with what torch offers."""

    def forward(x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        out = torch.zeros(x.shape, dtype=torch.float32)
        for expert in topk_ids.unique().tolist():
            token, slot = (topk_ids == expert).nonzero(as_tuple=True)
            gate, up = gate_up(expert, x[token]).chunk(2, dim=1)
            y = down(expert, silu(gate) * up)
            out.index_add_(0, token, y.float() * topk_weights[token, slot].unsqueeze(1))
        return out.to(x.dtype)

    return forward


def torch_bf16(w13: Tensor, w2: Tensor) -> Forward:
    """Matrix products with the weights dequantized to bfloat16: four times the bytes."""
    return by_expert(lambda e, x: linear(x, w13[e]), lambda e, x: linear(x, w2[e]))


def torch_int4(layer: Layer) -> Forward:
    """torch's own INT4 product, on weights repacked for it."""
    ops, group_size = torch.ops.aten, layer.group_size

    def repack(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        codes = unpack_codes(packed).to(torch.int32) + 8
        scale_and_zero = torch.stack([scale, torch.zeros_like(scale)], dim=-1).transpose(0, 1).contiguous()
        return ops._convert_weight_to_int4pack_for_cpu(codes, 1), scale_and_zero

    w13 = [repack(*pair) for pair in zip(layer.w13_packed, layer.w13_scale, strict=True)]
    w2 = [repack(*pair) for pair in zip(layer.w2_packed, layer.w2_scale, strict=True)]
    return by_expert(
        lambda e, x: ops._weight_int4pack_mm_for_cpu(x, w13[e][0], group_size, w13[e][1]),
        lambda e, x: ops._weight_int4pack_mm_for_cpu(x, w2[e][0], group_size, w2[e][1]),
    )


def vllm_bf16(w13: Tensor, w2: Tensor) -> Forward:
    """vLLM's fused MoE for CPUs without AMX, on bfloat16 weights packed for it."""
    from vllm import _custom_ops as ops

    packed13, packed2 = ops.cpu_prepack_moe_weight(w13, "vec"), ops.cpu_prepack_moe_weight(w2, "vec")

    def forward(x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        out = torch.empty_like(x)
        ids = topk_ids.to(torch.int32)
        ops.cpu_fused_moe(out, x, packed13, packed2, None, None, topk_weights, ids, "silu", "vec")
        return out

    return forward


def peers(layer: Layer) -> tuple[dict[str, Forward], dict[str, str]]:
    """Return the peers that are here, by name, and why the others are not."""
    forwards: dict[str, Forward] = {"torch int4pack_mm": torch_int4(layer)}
    absent = {}
    w13, w2 = layer.bf16()
    forwards["torch bf16"] = torch_bf16(w13, w2)
    if importlib.util.find_spec("vllm"):
        forwards["vLLM bf16"] = vllm_bf16(w13, w2)
    else:
        absent["vLLM bf16"] = "vllm is not installed"
    return forwards, absent
