"""AMD's zentorch: `zentorch_fused_moe` on INT4 weights, with activations rounded to INT8 (DA8W4)."""

import time

import torch
from torch import Tensor

from experts.layer import Call, Layer
from experts.peers.engine import AbsentError, Run, Setting, Variant

SIGNS = 0x88888888 - 2**32  # turns codes + 8 into two's complement


def build(layer: Layer, setting: Setting) -> Run:
    try:
        import zentorch  # noqa: F401
    except ImportError as error:
        raise AbsentError(f"zentorch cannot be imported: {error}") from error

    def groups_first(scale: Tensor) -> Tensor:
        return scale.transpose(1, 2).float().contiguous()

    w13, w2 = layer.w13_packed ^ SIGNS, layer.w2_packed ^ SIGNS
    w13_scale, w2_scale = groups_first(layer.w13_scale), groups_first(layer.w2_scale)
    fused_moe = torch.ops.zentorch.zentorch_fused_moe

    def run(call: Call) -> tuple[float, Tensor]:
        x, topk_weights, topk_ids = call
        ids = topk_ids.to(torch.int32)
        start = time.perf_counter()
        out = torch.zeros_like(x)
        fused_moe(out, x, w13, w2, None, None, topk_weights, ids, False, "silu", w13_scale, w2_scale)
        return time.perf_counter() - start, out

    return run


VARIANTS = {
    "zentorch": Variant(
        build=build,
        note="INT4 repacked by it, scales in float32; activations rounded to INT8, a scale a token",
    ),
}
