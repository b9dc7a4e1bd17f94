"""A model of k2-tiny's architecture in transformers: what it answers on a text, and its layers one by one.

The network is transformers' own, in float32; only the experts' sum is ours, so that it can be captured, and
attention is computed in blocks of queries, which on a CPU is faster than its fallback for heads of unequal
width. On a GPU too, products are of float32, not TF32, which is PyTorch's default and is checked.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fidelity.texts import Sequences

TOKENS_A_BATCH = 8192
QUERIES_A_BLOCK = 128

Weights = dict[str, Tensor]
"""A checkpoint's name -> float32 weight [out, in]."""
Observer = Callable[[int, Tensor, Tensor], None]
"""Called with an expert's number, its inputs [tokens, hidden] and its inner activations [tokens, width]."""
CPU = torch.device("cpu")


def sum_experts(module: nn.Module, hidden_states: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
    """Return the experts' weighted sum [tokens, hidden]; or zeros, if a `capture` hangs on the module.

    The ids [tokens, top_k] stay on the module, for `Network.answer`.
    """
    module.fidelity_chosen = ids
    capture = getattr(module, "fidelity_capture", None)
    if capture is not None:
        capture(hidden_states, ids, gates)
        return torch.zeros_like(hidden_states)
    observer: Observer | None = getattr(module, "fidelity_observer", None)
    total = torch.zeros_like(hidden_states)
    for expert, rows, g in by_expert(ids, gates, module.num_experts):
        x = hidden_states[rows]
        gate, up = (x @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
        inner = silu(gate) * up
        if observer is not None:
            observer(expert, x, inner)
        total.index_add_(0, rows, inner @ module.down_proj[expert].T * g[:, None])
    return total


def by_expert(ids: Tensor, gates: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (expert, its token numbers, its gate weights) for ids, gates [tokens, top_k]."""
    order = torch.argsort(ids.flatten(), stable=True)
    counts = torch.bincount(ids.flatten(), minlength=num_experts).tolist()
    for expert, chosen in enumerate(order.split(counts)):
        yield expert, chosen // ids.shape[1], gates.flatten()[chosen]


def attend_in_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention, [batch, heads, tokens, width], without a mask: padding stands on the right."""
    outputs = []
    for start in range(0, query.shape[2], QUERIES_A_BLOCK):
        stop = min(start + QUERIES_A_BLOCK, query.shape[2])
        logits = (query[:, :, start:stop] * scaling) @ key[:, :, :stop].mT
        later = torch.ones(stop - start, stop - start, dtype=torch.bool, device=query.device).triu(1)
        logits[..., start:].masked_fill_(later, float("-inf"))
        outputs.append(logits.softmax(dim=-1) @ value[:, :, :stop])
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


ALL_EXPERTS_FUNCTIONS.register("fidelity", sum_experts)
ALL_ATTENTION_FUNCTIONS.register("fidelity", attend_in_blocks)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded to one length, and where their tokens stand among all tokens.

    ids, valid: [sequences, length], int64 and bool. rows: [valid tokens], int64, in the order of ids[valid].
    """

    ids: Tensor
    valid: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.valid.to(device), self.rows.to(device))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says of a batch's valid tokens, in the order of `Batch.rows`.

    log_probabilities: float32 [tokens, vocabulary]. chosen: int64 [MoE layers, tokens, top_k], the experts of
    a token, in rising order.
    """

    log_probabilities: Tensor
    chosen: Tensor


def make_batches(sequences: Sequences, device: torch.device = CPU) -> list[Batch]:
    """Group sequences of like length into batches on a device."""
    starts = torch.tensor([0, *map(len, sequences)]).cumsum(0).tolist()
    batches, chosen = [], list[int]()
    for number in sorted(range(len(sequences)), key=lambda n: len(sequences[n])):
        if chosen and (len(chosen) + 1) * len(sequences[number]) > TOKENS_A_BATCH:
            batches.append(_pad(sequences, starts, chosen))
            chosen = []
        chosen.append(number)
    batches.append(_pad(sequences, starts, chosen))
    return [batch.to(device) for batch in batches]


def _pad(sequences: Sequences, starts: list[int], chosen: list[int]) -> Batch:
    length = max(len(sequences[number]) for number in chosen)
    ids = torch.zeros(len(chosen), length, dtype=torch.long)
    valid = torch.zeros(len(chosen), length, dtype=torch.bool)
    for row, number in enumerate(chosen):
        sequence = sequences[number]
        ids[row, : len(sequence)] = torch.tensor(sequence)
        valid[row, : len(sequence)] = True
    rows = torch.cat([torch.arange(starts[n], starts[n] + len(sequences[n])) for n in chosen])
    return Batch(ids, valid, rows)


class Network:
    """The whole model on a device, whose expert weights can be replaced; weights given may lie anywhere."""

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        assert torch.get_float32_matmul_precision() == "highest"
        self.device = device
        values = json.loads((folder / "config.json").read_text())
        values.pop("model_type")
        config = DeepseekV3Config(**values)
        config._experts_implementation = "fidelity"
        self.config = config
        self.original: Weights = {}
        for path in sorted(folder.glob("*.safetensors")):
            stored = load_file(path, device=str(device))
            self.original.update({name: tensor.float() for name, tensor in stored.items()})
        with torch.device("meta"):
            model = DeepseekV3ForCausalLM._from_config(
                config, dtype=torch.float32, attn_implementation="fidelity"
            )
        state = {name: tensor for name, tensor in self.original.items() if ".mlp.experts." not in name}
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
        assert not unexpected
        assert all(".mlp.experts." in name for name in missing)
        self.moe_layers = [n for n, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")]
        for layer in self.moe_layers:
            experts = model.model.layers[layer].mlp.experts
            for name in ("gate_up_proj", "down_proj"):
                empty = torch.empty(getattr(experts, name).shape, device=device)
                setattr(experts, name, nn.Parameter(empty, requires_grad=False))
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
        self.model = model.eval().requires_grad_(False)
        self.set_experts(self.original)

    def experts(self, layer: int) -> Any:
        """Return the module of a layer's experts."""
        return self.model.model.layers[layer].mlp.experts

    def expert_name(self, layer: int, expert: int, part: str) -> str:
        """Return the checkpoint's name of an expert's matrix; part is gate, up or down."""
        return f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"

    @torch.inference_mode()
    def set_experts(self, weights: Weights, layers: list[int] | None = None) -> None:
        """Put expert weights into the network."""
        width = int(self.config.moe_intermediate_size)
        for layer in self.moe_layers if layers is None else layers:
            experts = self.experts(layer)
            for expert in range(self.config.n_routed_experts):
                gate, up, down = (
                    weights[self.expert_name(layer, expert, part)] for part in ("gate", "up", "down")
                )
                experts.gate_up_proj[expert, :width].copy_(gate)
                experts.gate_up_proj[expert, width:].copy_(up)
                experts.down_proj[expert].copy_(down)

    @torch.inference_mode()
    def answer(self, batch: Batch) -> Answer:
        """Run a batch through the network, teacher-forced."""
        logits = self.model(batch.ids, use_cache=False).logits[batch.valid]
        valid = batch.valid.flatten()
        chosen = [self.experts(layer).fidelity_chosen[valid].sort(dim=-1).values for layer in self.moe_layers]
        return Answer(torch.log_softmax(logits.float(), dim=-1), torch.stack(chosen))

    @torch.inference_mode()
    def embed(self, sequences: Sequences) -> Tensor:
        """Return [tokens, hidden], the input of the first layer."""
        ids = torch.tensor([token for sequence in sequences for token in sequence], device=self.device)
        return self.model.model.embed_tokens(ids)

    @torch.inference_mode()
    def run_layer(
        self, layer: int, hidden: Tensor, batches: list[Batch]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | Tensor:
        """Return a dense layer's output; or (output without experts, x, ids, gates) of a MoE layer."""
        module = self.model.model.layers[layer]
        output, inputs = torch.empty_like(hidden), torch.empty_like(hidden)
        top_k = self.config.num_experts_per_tok
        ids = torch.empty(hidden.shape[0], top_k, dtype=torch.long, device=self.device)
        gates = torch.empty(hidden.shape[0], top_k, device=self.device)
        is_moe = layer in self.moe_layers
        for batch in batches:
            states = hidden.new_zeros(*batch.ids.shape, hidden.shape[1])
            states[batch.valid] = hidden[batch.rows]
            positions = torch.arange(states.shape[1], device=self.device)[None]
            valid = batch.valid.flatten()

            def capture(x: Tensor, i: Tensor, g: Tensor, batch: Batch = batch, valid: Tensor = valid) -> None:
                inputs[batch.rows] = x.reshape(-1, x.shape[-1])[valid]
                ids[batch.rows] = i.reshape(-1, top_k)[valid]
                gates[batch.rows] = g.reshape(-1, top_k)[valid].float()

            if is_moe:
                self.experts(layer).fidelity_capture = capture
            result = module(
                states,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=self.model.model.rotary_emb(states, positions),
                use_cache=False,
            )
            if is_moe:
                del self.experts(layer).fidelity_capture
            output[batch.rows] = result[batch.valid]
        return (output, inputs, ids, gates) if is_moe else output
