"""`fused_experts` as a torch operator, so that torch.compile passes it by instead of tracing into it."""

import torch
from torch import Tensor

from moe4.kernels import op

_SCHEMA = (
    "(Tensor hidden_states, Tensor w13_packed, Tensor w13_scale, Tensor w2_packed, Tensor w2_scale, "
    "Tensor topk_weights, Tensor topk_ids, int group_size) -> Tensor"
)
# Kept for the life of the process: the operator goes when its library object does.
_library = torch.library.Library("moe4", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"fused_experts{_SCHEMA}", tags=(torch.Tag.needs_fixed_stride_order,)
)


def _fused_experts_cpu(
    hidden_states: Tensor,
    w13_packed: Tensor,
    w13_scale: Tensor,
    w2_packed: Tensor,
    w2_scale: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    group_size: int,
) -> Tensor:
    return op.fused_experts(
        hidden_states,
        w13_packed,
        w13_scale,
        w2_packed,
        w2_scale,
        topk_weights,
        topk_ids,
        group_size=group_size,
        num_threads=torch.get_num_threads(),
    )


def _fused_experts_shape(hidden_states: Tensor, *_: object) -> Tensor:
    return torch.empty_like(hidden_states, memory_format=torch.contiguous_format)


_library.impl("fused_experts", _fused_experts_cpu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("moe4::fused_experts", _fused_experts_shape, lib=_library)

fused_experts = torch.ops.moe4.fused_experts.default
