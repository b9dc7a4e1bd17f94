"""Routed experts in W4A16 on a CPU that stay in the release's files."""

from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config_or_none

from moe4.errors import ServeError
from moe4.vllm_plugin.experts.method import CpuW4A16ExpertsMethod, own_ids
from moe4.vllm_plugin.loader import ops as mapped_ops
from moe4.vllm_plugin.loader.layer import ExpertLayout, MappedLayer
from moe4.vllm_plugin.loader.options import LOAD_FORMAT


class MappedW4A16ExpertsMethod(CpuW4A16ExpertsMethod):
    """Run a layer's experts where the loader found them; nothing is allocated for their weights."""

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Check the widths and register an empty table of addresses on `layer`."""
        share = intermediate_size_per_partition
        self.require_whole_groups(layer, hidden_size, share)
        moe = layer.moe_config
        parallel = moe.moe_parallel_config
        if share * parallel.tp_size != moe.intermediate_size:
            raise ServeError(
                f"{layer.layer_name}: the experts' inner width, {moe.intermediate_size}, does not split over "
                f"{parallel.tp_size} ranks, and mapped weights cannot be padded: use --load-format auto"
            )
        layer.moe4_layout = None
        self._sizes = (hidden_size, moe.intermediate_size, parallel.tp_rank * share, share)
        layer.register_buffer(
            "expert_table", torch.zeros(num_experts, 6, dtype=torch.int64, device="cpu"), persistent=False
        )
        layer.moe4_supply = 0

    def layout(self, layer: Any) -> ExpertLayout:
        """Return what this rank takes of the checkpoint."""
        hidden, inter, first, share = self._sizes
        expert_map = layer.expert_map
        if expert_map is None:
            experts = tuple(range(layer.local_num_experts))
        else:
            local = {int(slot): expert for expert, slot in enumerate(expert_map.tolist()) if slot >= 0}
            experts = tuple(local[slot] for slot in range(layer.local_num_experts))
        return ExpertLayout(
            prefix=layer.layer_name,
            projections=(layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name),
            experts=experts,
            hidden=hidden,
            inter=inter,
            first=first,
            share=share,
            group_size=self.group_size,
        )

    def attach(self, layer: Any, mapped: MappedLayer, supply: int) -> None:
        """Take the addresses of the layer's experts and the number of what brings them into memory."""
        layer.expert_table.copy_(mapped.table)
        layer.moe4_mapped = mapped
        layer.moe4_supply = supply

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that the loader was here, and say once what runs this model's experts."""
        if not hasattr(layer, "moe4_mapped"):
            raise ServeError(f"{layer.layer_name} was not loaded by --load-format {LOAD_FORMAT}")
        self.say_what_runs("mapped from the release")

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """Return this rank's part of the routed experts' sum, as the method for weights in memory does."""
        _, inter, _, share = self._sizes
        output: Tensor = mapped_ops.table_experts(
            x,
            layer.expert_table,
            topk_weights.float(),
            own_ids(layer, topk_ids),
            share,
            self.group_size,
            inter,
            layer.moe4_supply,
        )
        return output


def experts_are_mapped() -> bool:
    """Say whether the model that is being built will be loaded by our loader."""
    config = get_current_vllm_config_or_none()
    return config is not None and config.load_config.load_format == LOAD_FORMAT
