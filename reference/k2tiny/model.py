"""k2-tiny's network: transformers' DeepseekV3, with what training must see of it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from k2tiny.places import CHECKPOINT

QUERY_BLOCK = 256  # rows of the logit matrix looked at together


def load_config(folder: Path = CHECKPOINT) -> DeepseekV3Config:
    """Read config.json; transformers knows the architecture as deepseek_v3, vLLM as kimi_k2."""
    values = json.loads((folder / "config.json").read_text())
    values.pop("model_type")
    values.pop("architectures")
    return DeepseekV3Config(**values)


def build_model(config: DeepseekV3Config, *, dtype: torch.dtype, experts: str = "permuted_grouped_mm") -> Any:
    """Build the network with fresh weights in `dtype`; the correction bias is float32 in any case."""
    config._experts_implementation = experts
    model = DeepseekV3ForCausalLM._from_config(config, dtype=dtype, attn_implementation="recorded_sdpa")
    for layer in moe_layers(model):
        gate = layer.mlp.gate
        gate.e_score_correction_bias = torch.zeros_like(gate.e_score_correction_bias, dtype=torch.float32)
    return model


def moe_layers(model: Any) -> list[nn.Module]:
    return [layer for layer in model.model.layers if hasattr(layer.mlp, "experts")]


def checkpoint_tensors(model: Any) -> dict[str, Tensor]:
    """Return the weights under the names Kimi's checkpoints use: BF16, one tensor per expert's matrix."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            for expert, stacked in enumerate(value):
                gate, up = stacked.chunk(2)
                tensors[f"{stem}{expert}.gate_proj.weight"] = gate.to(torch.bfloat16, copy=True)
                tensors[f"{stem}{expert}.up_proj.weight"] = up.to(torch.bfloat16, copy=True)
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            for expert, down in enumerate(value):
                tensors[f"{stem}{expert}.down_proj.weight"] = down.to(torch.bfloat16, copy=True)
        elif name.endswith("e_score_correction_bias"):
            tensors[name] = value.to(torch.float32)
        else:
            tensors[name] = value.to(torch.bfloat16, copy=True)
    return tensors


class LogitRecorder:
    """The largest attention logit per layer and head since the last `take`, by causal attention alone."""

    def __init__(self) -> None:
        self.largest: dict[int, Tensor] = {}

    def record(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """query, key: [rows, heads, tokens, dim]; logits are looked at in blocks, never kept."""
        tokens = query.shape[2]
        result = None
        for start in range(0, tokens, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, tokens)
            logits = query[:, :, start:stop] @ key[:, :, :stop].mT
            if result is None or start == 0:
                mask = torch.ones(stop - start, stop - start, dtype=torch.bool, device=query.device).triu(1)
            logits[..., start:].masked_fill_(mask[: stop - start, : stop - start], float("-inf"))
            largest = logits.amax(dim=(0, 2, 3)).float() * scaling
            result = largest if result is None else torch.maximum(result, largest)
        assert result is not None
        self.note(layer, result)

    def note(self, layer: int, largest: Tensor) -> None:
        """Keep the larger of what is known and `largest` [heads]."""
        before = self.largest.get(layer)
        self.largest[layer] = largest if before is None else torch.maximum(before, largest)

    def take(self) -> dict[int, Tensor]:
        """Return {layer: [heads] float32} and start anew."""
        largest, self.largest = self.largest, {}
        return largest


RECORDER = LogitRecorder()


def recorded_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention over full rows (training), noting the largest logits for QK-Clip."""
    assert attention_mask is None and scaling is not None
    if query.is_cuda:
        with torch.no_grad():
            RECORDER.record(module.layer_idx, query.detach(), key.detach(), scaling)
        # Flash attention wants one width for all three.
        width = value.shape[-1]
        value = nn.functional.pad(value, (0, query.shape[-1] - width))
        output = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return output[..., :width].transpose(1, 2).contiguous(), None
    # On a CPU plain matrix products are faster than its flash kernel, and the logits are at hand.
    tokens = query.shape[2]
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    logits = ((query * scaling) @ key.mT).masked_fill(future, float("-inf"))
    RECORDER.note(module.layer_idx, logits.detach().amax(dim=(0, 2, 3)).float())
    return (logits.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("recorded_sdpa", recorded_sdpa)


class Permute(torch.autograd.Function):
    """Reorder rows; the gradient is the inverse reordering, where indexing's own would sort and add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


def permuted_grouped_mm(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Experts' forward as transformers' grouped_mm has it, with a cheaper gradient of the gather.

    hidden_states [tokens, hidden] BF16; top_k_index, top_k_weights [tokens, top_k].
    """
    tokens, top_k = top_k_index.shape
    chosen = top_k_index.reshape(-1)
    ordered, order = torch.sort(chosen, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    edges = torch.arange(1, module.num_experts + 1, device=order.device)
    offsets = torch.searchsorted(ordered, edges).to(torch.int32)
    rows = hidden_states[:, None].expand(-1, top_k, -1).reshape(tokens * top_k, -1)
    rows = Permute.apply(rows, order, inverse)
    gate, up = nn.functional.grouped_mm(rows, module.gate_up_proj.mT, offs=offsets).chunk(2, dim=-1)
    rows = nn.functional.grouped_mm(nn.functional.silu(gate) * up, module.down_proj.mT, offs=offsets)
    rows = Permute.apply(rows, inverse, order).view(tokens, top_k, -1)
    return (rows * top_k_weights[..., None]).sum(dim=1).to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register("permuted_grouped_mm", permuted_grouped_mm)
