"""From a config to decoder layers on the meta device, and which tensors are routed experts.

The network's code is transformers'. Layers are built one at a time, without their experts' weights: experts
are 3-D parameters in memory that stay on the meta device, and one tensor per expert and projection in the
checkpoint.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moe4.config import ModelConfig
from moe4.errors import TensorError, UnsupportedModelError
from moe4.model.experts import EXPERTS_IMPLEMENTATION
from moe4.model.layouts import find_layout
from moe4.model.names import find_names
from moe4.model.outline import ExpertShape, Outline

# model_type in the checkpoint -> model_type in transformers. Tests hold each to transformers' whole model.
SUPPORTED_MODEL_TYPES = {
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "dots1": "dots1",
    "glm4_moe": "glm4_moe",
    "kimi_k2": "deepseek_v3",
    "mixtral": "mixtral",
    "olmoe": "olmoe",
    "qwen2_moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
}


class Network(Outline):
    """A model's skeleton on the meta device, by transformers' own code. No weights are held.

    Raises UnsupportedModelError for a model that cannot be streamed.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype) -> None:
        self.compute_dtype, self.item_bytes = compute_dtype, compute_dtype.itemsize
        self.config = build_config(config)
        config.require_complete()
        model_type = config.family.model_type
        self._transformers_type = SUPPORTED_MODEL_TYPES[model_type]
        names = find_names(model_type, self._transformers_type)
        self.names = replace(names, text_prefix=config.text_prefix)
        model = _build_skeleton(self.config, compute_dtype)
        model.eval().requires_grad_(False)
        self._decoder = model.model
        self.num_layers = len(self._decoder.layers)
        self._fp32_names: tuple[str, ...] = tuple(model._keep_in_fp32_modules_strict or ())
        self.experts = [self._find_experts(layer) for layer in range(self.num_layers)]

    def build_layer(self, layer: int, load: Callable[[str], Tensor], device: torch.device) -> nn.Module:
        """Return a decoder layer with all weights but the routed experts', in the compute dtype.

        `load` reads a tensor by its name in the checkpoint. Tensors that transformers keeps in float32 stay
        so. Raises TensorError if a shape is not the one the config asks for.
        """
        module: nn.Module = copy.deepcopy(self._decoder.layers[layer])
        state = {}
        for name, local, shape in self._layer_tensors(layer):
            tensor = load(name)
            if tuple(tensor.shape) != shape:
                raise TensorError(f"{name} must have shape {list(shape)}, found {list(tensor.shape)}")
            keep = any(part in local for part in self._fp32_names)
            state[local] = tensor.to(device=device, dtype=torch.float32 if keep else self.compute_dtype)
        module.load_state_dict(state, strict=False, assign=True)
        return module.eval().requires_grad_(False)

    def build_final_norm(self, load: Callable[[str], Tensor], device: torch.device) -> nn.Module:
        """Return the norm between the last layer and the head, in the compute dtype."""
        norm: nn.Module = copy.deepcopy(self._decoder.norm)
        weight = load(self.norm_name).to(device=device, dtype=self.compute_dtype)
        norm.load_state_dict({"weight": weight}, assign=True)
        return norm.eval().requires_grad_(False)

    def build_rotary(self, device: torch.device) -> nn.Module:
        """Return the rotary embedding with its frequencies computed."""
        rotary: nn.Module = type(self._decoder.rotary_emb)(config=self.config)
        return rotary.to(device=device)

    def experts_module(self, layer_module: nn.Module, layer: int) -> nn.Module:
        """Return the routed experts inside a built layer."""
        experts = self.experts[layer]
        assert experts is not None
        return layer_module.get_submodule(experts.module)

    def activation(self, layer: int) -> Callable[[Tensor], Tensor]:
        """Return the experts' activation function."""
        experts: Any = self.experts_module(self._decoder.layers[layer], layer)
        function: Callable[[Tensor], Tensor] = experts.act_fn
        return function

    def _layer_tensors(self, layer: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield (name in the checkpoint, name in the module, shape) of all but routed experts."""
        experts = self.experts[layer]
        for local, tensor in self._decoder.layers[layer].state_dict().items():
            if experts is None or not local.startswith(f"{experts.module}."):
                stored = self.names.in_checkpoint(f"model.layers.{layer}.{local}")
                yield stored, local, tuple(tensor.shape)

    def _find_experts(self, layer: int) -> ExpertShape | None:
        """Return the shape of a layer's routed experts, or None for a dense layer."""
        for name, module in self._decoder.layers[layer].named_modules():
            gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
            if isinstance(gate_up, nn.Parameter) and isinstance(down, nn.Parameter):
                layout = find_layout(module, self._transformers_type)
                num_experts, *sizes = down.shape
                hidden_size, width = reversed(sizes) if layout.is_turned else sizes
                return ExpertShape(
                    num_experts=num_experts,
                    hidden_size=hidden_size,
                    width=width,
                    prefix=self.names.in_checkpoint(f"model.layers.{layer}.{name}"),
                    module=name,
                    leaves=self.names.expert_leaves,
                    layout=layout,
                )
        return None


def _build_skeleton(config: Any, dtype: torch.dtype) -> Any:
    """Return transformers' whole model on the meta device, where it takes no memory."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", experts_implementation=EXPERTS_IMPLEMENTATION, dtype=dtype
            )
    except Exception as error:  # a config may ask for anything
        reason = str(error).replace("\n", " ")
        raise UnsupportedModelError(f"transformers cannot build this model: {reason}") from error


def build_config(config: ModelConfig) -> Any:
    """Return transformers' config for a checkpoint's config.json; never runs code of the checkpoint's.

    Raises UnsupportedModelError.
    """
    from transformers import AutoConfig

    model_type = config.family.model_type
    dropped = ("model_type", "quantization_config", "auto_map", "architectures", "transformers_version")
    # transformers writes into nested tables of what it is given.
    document = config.text_document
    values = {key: copy.deepcopy(value) for key, value in document.items() if key not in dropped}
    try:
        return AutoConfig.for_model(SUPPORTED_MODEL_TYPES[model_type], **values)
    except Exception as error:
        reason = str(error).replace("\n", " ")
        raise UnsupportedModelError(
            f"{config.where}: transformers cannot build this {model_type} config: {reason}"
        ) from error
