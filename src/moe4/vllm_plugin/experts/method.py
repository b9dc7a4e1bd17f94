"""Routed experts in W4A16 on a CPU, over the checkpoint's own bytes."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.routed_experts import FusedMoeWeightScaleSupported
from vllm.model_executor.utils import set_weight_attrs

from moe4.errors import KernelError
from moe4.kernels import op
from moe4.kernels.paths import selected_path
from moe4.vllm_plugin.experts import ops

logger = init_logger("vllm.plugins.moe4")


class CpuW4A16ExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc]  # vllm is untyped here
    """Hold one layer's routed experts as the checkpoint stores them and run them with `moe4.kernels`.

    Parameter names are those of vLLM's own WNA16 method, so its weight loader serves unchanged, sharded over
    tensor parallel ranks along the experts' inner width and over expert parallel ranks by expert. Nothing is
    repacked.
    """

    def __init__(self, layer: Any, group_size: int) -> None:
        super().__init__(layer.moe_config)
        self.group_size = group_size
        _refuse_what_the_kernel_lacks(layer, group_size)

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the packed words, the scales and the shapes on `layer`.

        w13_weight_packed: int32 [experts, 2 * inter, hidden / 8], gate rows first, then up rows.
        w13_weight_scale: bfloat16 [experts, 2 * inter, hidden / group_size].
        w2_weight_packed: int32 [experts, hidden, inter / 8].
        w2_weight_scale: bfloat16 [experts, hidden, inter / group_size].
        w13_weight_shape, w2_weight_shape: [experts, 2]; in the checkpoint; the kernel has no use for them.

        `inter` is this rank's share. Scales start as NaN, so that a missing one is noticed after loading.
        """
        inter = intermediate_size_per_partition
        self.require_whole_groups(layer, hidden_size, inter)
        loader = _note_rounded_scales(extra_weight_attrs.pop("weight_loader"))
        layer.weight_loader = loader
        attributes = {
            **extra_weight_attrs,
            "weight_loader": loader,
            "quant_method": FusedMoeWeightScaleSupported.GROUP.value,
            "is_transposed": False,
        }
        for stem, rows, columns in (("w13", 2 * inter, hidden_size), ("w2", hidden_size, inter)):
            words = torch.empty(num_experts, rows, columns // 8, dtype=torch.int32)
            scales = torch.full(
                (num_experts, rows, columns // self.group_size), float("nan"), dtype=torch.bfloat16
            )
            shapes = torch.zeros(num_experts, 2, dtype=torch.float32)
            for suffix, values in (("packed", words), ("scale", scales), ("shape", shapes)):
                parameter = Parameter(values, requires_grad=False)
                layer.register_parameter(f"{stem}_weight_{suffix}", parameter)
                set_weight_attrs(parameter, attributes)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that every scale arrived and is finite, and say once what runs this model's experts."""
        for name in ("w13_weight_scale", "w2_weight_scale"):
            bad = ~torch.isfinite(getattr(layer, name)).flatten(1).all(dim=1)
            if bad.any():
                expert = int(bad.nonzero()[0])
                raise ValueError(
                    f"{layer.layer_name}: in {name}, {int(bad.sum())} of {len(bad)} experts have scales "
                    f"that are missing or not finite, the first is {expert}: run `moe4 verify` on the release"
                )
        self.say_what_runs("checkpoint layout")

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        """Return None: vLLM's modular kernels are not used."""
        return

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """Return this rank's part of the routed experts' sum, [tokens, hidden].

        vLLM adds the other ranks' parts and the shared experts.

        x: [tokens, hidden]. topk_weights: [tokens, top_k], normalized and scaled by vLLM's router.
        topk_ids: [tokens, top_k], numbers over all ranks' experts.
        """
        output: Tensor = ops.fused_experts(
            x,
            layer.w13_weight_packed,
            layer.w13_weight_scale,
            layer.w2_weight_packed,
            layer.w2_weight_scale,
            topk_weights.float(),
            own_ids(layer, topk_ids),
            self.group_size,
        )
        return output

    def require_whole_groups(self, layer: Any, hidden_size: int, inter: int) -> None:
        """Raise KernelError unless groups divide both widths of this rank's experts."""
        for name, width in (("hidden size", hidden_size), ("experts' inner width on each rank", inter)):
            if width % self.group_size:
                raise KernelError(
                    f"{layer.layer_name}: the {name}, {width}, is not a multiple of the group size "
                    f"{self.group_size}: use a smaller --tensor-parallel-size"
                )

    def say_what_runs(self, weights: str) -> None:
        """Say once what runs this model's experts, and where their weights are."""
        logger.info_once(
            "moe4: W4A16 routed experts on CPU, kernel path %s, group size %d, %s, %d threads",
            selected_path(),
            self.group_size,
            weights,
            torch.get_num_threads(),
        )


def own_ids(layer: Any, topk_ids: Tensor) -> Tensor:
    """Return the experts' numbers on this rank: -1, which the kernel skips, for those of other ranks."""
    expert_map = layer.expert_map
    ids: Tensor = topk_ids if expert_map is None else expert_map[topk_ids.long()]
    return ids


def _refuse_what_the_kernel_lacks(layer: Any, group_size: int) -> None:
    """Raise one clear line where the layer wants something that `moe4.kernels` does not compute."""
    moe = layer.moe_config
    lacking = [
        (group_size not in op.GROUP_SIZES, f"group size {group_size} (it has {op.GROUP_SIZES})"),
        (moe.activation != MoEActivation.SILU, f"the activation {moe.activation.value!r} (it has silu)"),
        (moe.has_bias, "experts with biases"),
        (moe.is_lora_enabled, "LoRA adapters"),
        (layer.apply_router_weight_on_input, "router weights on the experts' input"),
        (moe.swiglu_limit is not None or layer.swiglu_limit is not None, "a clamped SwiGLU"),
        (moe.in_dtype not in op.HIDDEN_DTYPES, f"activations in {moe.in_dtype}"),
    ]
    missing = [what for lacks, what in lacking if lacks]
    if missing:
        raise KernelError(
            f"{layer.layer_name}: moe4's CPU kernels do not support {' or '.join(missing)}; "
            "serve this model on a GPU, or set VLLM_PLUGINS to leave moe4 out"
        )


def _note_rounded_scales(loader: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap vLLM's weight loader to say so, once, where scales are not bfloat16 and get rounded to it."""

    @functools.wraps(loader)
    def load(param: Parameter, loaded_weight: Tensor, weight_name: str, *args: Any, **kwargs: Any) -> Any:
        if "weight_scale" in weight_name and loaded_weight.dtype != torch.bfloat16:
            logger.warning_once(
                "moe4: this checkpoint's scales are %s; they are rounded to bfloat16", loaded_weight.dtype
            )
        return loader(param, loaded_weight, weight_name, *args, **kwargs)

    return load
