"""`table_experts` as a torch operator, with what brings experts into memory before they are read."""

import torch
from torch import Tensor

from moe4.kernels.table import table_experts as run_table_experts
from moe4.vllm_plugin.loader.supply import Supply

_SCHEMA = (
    "(Tensor hidden_states, Tensor table, Tensor topk_weights, Tensor topk_ids, int inter, int group_size, "
    "int down_stride, int supply) -> Tensor"
)
# Kept for the life of the process: the operator goes when its library object does.
_library = torch.library.Library("moe4", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"table_experts{_SCHEMA}", tags=(torch.Tag.needs_fixed_stride_order,)
)
# A compiled graph can hold a number, and not an object: 0 is no supply, n the n-th that was added.
_supplies: list[Supply] = []


def add_supply(supply: Supply) -> int:
    """Register one layer's supply and return its number for the operator."""
    _supplies.append(supply)
    return len(_supplies)


def _table_experts_cpu(
    hidden_states: Tensor,
    table: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    inter: int,
    group_size: int,
    down_stride: int,
    supply: int,
) -> Tensor:
    def forward(x: Tensor, addresses: Tensor, ids: Tensor) -> Tensor:
        return run_table_experts(
            x,
            addresses,
            topk_weights,
            ids,
            inter=inter,
            group_size=group_size,
            down_stride=down_stride,
            num_threads=torch.get_num_threads(),
        )

    if not supply:
        return forward(hidden_states, table, topk_ids)
    store = _supplies[supply - 1]
    parts = store.split(topk_ids)
    if len(parts) == 1:
        return forward(hidden_states, store.fetch(topk_ids), topk_ids)
    # Experts that do not all fit at once come one part after the other, and add up in float32.
    total = torch.zeros(hidden_states.shape, dtype=torch.float32)
    for ids in parts:
        total += forward(hidden_states.float(), store.fetch(ids), ids)
    return total.to(hidden_states.dtype)


def _table_experts_shape(hidden_states: Tensor, *_: object) -> Tensor:
    return torch.empty_like(hidden_states, memory_format=torch.contiguous_format)


_library.impl("table_experts", _table_experts_cpu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("moe4::table_experts", _table_experts_shape, lib=_library)

table_experts = torch.ops.moe4.table_experts.default
