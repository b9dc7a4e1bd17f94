"""The engines that share the benchmark's process, each on weights laid out as it wants them."""

import importlib.util
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from experts.contestant import EXACT_ACTIVATIONS, INT8_ACTIVATIONS, Contestant, settle
from experts.layer import Call, Layer
from moe4.kernels import fused_experts
from moe4.kernels.paths import ON_REQUEST
from moe4.kernels.reference import unpack_codes

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden_states, topk_weights, topk_ids


def timed(forward: Forward) -> Callable[[Call], tuple[float, Tensor]]:
    def run(call: Call) -> tuple[float, Tensor]:
        settle()
        start = time.perf_counter()
        out = forward(*call)
        return time.perf_counter() - start, out

    return run


def moe4(layer: Layer, path: str) -> Contestant:
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

    return Contestant(
        name=f"moe4 {path}",
        run=timed(forward),
        note=f"INT4 as in the checkpoint, not repacked; {ON_REQUEST.get(path, '16-bit activations or more')}",
        max_error=INT8_ACTIVATIONS if path in ON_REQUEST else EXACT_ACTIVATIONS,
    )


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


def torch_bf16(w13: Tensor, w2: Tensor) -> Contestant:
    return Contestant(
        name="torch bf16",
        run=timed(by_expert(lambda e, x: linear(x, w13[e]), lambda e, x: linear(x, w2[e]))),
        note="matrix products with the weights dequantized to bfloat16: four times the bytes",
        max_error=EXACT_ACTIVATIONS,
    )


def torch_int4(layer: Layer) -> Contestant:
    ops, group_size = torch.ops.aten, layer.group_size

    def repack(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        codes = unpack_codes(packed).to(torch.int32) + 8
        scale_and_zero = torch.stack([scale, torch.zeros_like(scale)], dim=-1).transpose(0, 1).contiguous()
        return ops._convert_weight_to_int4pack_for_cpu(codes, 1), scale_and_zero

    w13 = [repack(*pair) for pair in zip(layer.w13_packed, layer.w13_scale, strict=True)]
    w2 = [repack(*pair) for pair in zip(layer.w2_packed, layer.w2_scale, strict=True)]
    forward = by_expert(
        lambda e, x: ops._weight_int4pack_mm_for_cpu(x, w13[e][0], group_size, w13[e][1]),
        lambda e, x: ops._weight_int4pack_mm_for_cpu(x, w2[e][0], group_size, w2[e][1]),
    )
    return Contestant(
        name="torch int4pack_mm",
        run=timed(forward),
        note="torch's own INT4 product, on weights repacked for it",
        max_error=EXACT_ACTIVATIONS,
    )


def vllm_bf16(w13: Tensor, w2: Tensor) -> Contestant:
    """vLLM's fused MoE for CPUs without AMX. Raises ModuleNotFoundError."""
    if not importlib.util.find_spec("vllm"):
        raise ModuleNotFoundError("vllm is not installed")
    from vllm import _custom_ops as ops

    packed13, packed2 = ops.cpu_prepack_moe_weight(w13, "vec"), ops.cpu_prepack_moe_weight(w2, "vec")

    def forward(x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        out = torch.empty_like(x)
        ids = topk_ids.to(torch.int32)
        ops.cpu_fused_moe(out, x, packed13, packed2, None, None, topk_weights, ids, "silu", "vec")
        return out

    return Contestant(
        name="vLLM bf16",
        run=timed(forward),
        note="cpu_fused_moe on bfloat16 weights packed for it: four times the bytes",
        max_error=EXACT_ACTIVATIONS,
    )
