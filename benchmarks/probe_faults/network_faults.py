"""Faults of all that is not routed experts' weights: routing, attention, positions, norms, ends, order."""

import math
from typing import Any

import torch
from probe_faults.engine import Edits
from probe_faults.faults import MOE_LAYERS, Fault, Plant, both
from torch import Tensor

LAYER = 2
ROUTING, ATTENTION, POSITIONS, NORMS, ENDS, ORDER, NUMBERS = (
    "routing",
    "attention",
    "positions",
    "norms",
    "embedding and head",
    "layers",
    "numbers",
)


def every_layer(edits: Edits) -> list[Any]:
    """Return all decoder layers."""
    return list(edits.layers)


def router(**values: Any) -> Plant:
    """Return a fault that gives every layer's router other settings."""

    def plant(edits: Edits) -> None:
        for layer in MOE_LAYERS:
            for name, value in values.items():
                edits.set(edits.layers[layer].mlp.experts.router, name, value)

    return plant


def scaling(factor: float) -> Plant:
    """Return a fault that scales routed experts' sums by another factor."""

    def plant(edits: Edits) -> None:
        for layer in MOE_LAYERS:
            edits.set(edits.layers[layer].mlp.experts, "routed_scaling_factor", factor)

    return plant


def bias(layers: tuple[int, ...], change: Any) -> Plant:
    """Return a fault of the correction bias."""

    def plant(edits: Edits) -> None:
        for layer in layers:
            values = edits.layers[layer].mlp.gate.e_score_correction_bias
            edits.write(values, change(values))

    return plant


def weight(path: str, change: Any, layers: tuple[int, ...] = (LAYER,)) -> Plant:
    """Return a fault of one weight of some layers; `path` from the layer on."""

    def plant(edits: Edits) -> None:
        for layer in layers:
            module = edits.layers[layer].get_submodule(path)
            edits.write(module.weight, change(module.weight.detach().clone()))

    return plant


def positions(**changes: Any) -> Plant:
    """Return a fault that computes rotary positions from other settings."""

    def plant(edits: Edits) -> None:
        caches = {}
        for layer in every_layer(edits):
            rotary = layer.self_attn.rotary_emb
            if id(rotary) in caches:
                continue
            changed = edits.copy_of(rotary)
            for name, value in changes.items():
                setattr(changed, name, value)
            cache = changed._compute_cos_sin_cache()[: rotary.cos_sin_cache.shape[0]]
            caches[id(rotary)] = cache
            if cache.shape != rotary.cos_sin_cache.shape:  # a smaller factor makes fewer positions
                cache = torch.cat([cache, rotary.cos_sin_cache[cache.shape[0] :].to(cache.dtype)])
            edits.write(rotary.cos_sin_cache, cache)

    return plant


def old_positions(edits: Edits) -> None:
    """Read positions from 64 on as those from 0 on, as a table that is too short would."""
    cache = edits.layers[0].self_attn.rotary_emb.cos_sin_cache
    edits.write(cache, cache[torch.arange(len(cache)) % 64])


def other_pairs(edits: Edits) -> None:
    """Rotate first and second halves where neighbours belong together."""
    for layer in every_layer(edits):
        edits.set(layer.self_attn.rotary_emb, "is_neox_style", True)


def softmax_scale(change: float) -> Plant:
    """Return a fault that multiplies attention's scale."""

    def plant(edits: Edits) -> None:
        for layer in every_layer(edits):
            attention = layer.self_attn.mla_attn.mla_attn
            edits.set(attention.impl, "scale", attention.impl.scale * change)
            edits.set(attention, "scale", attention.scale * change)

    return plant


def decode_only(edits: Edits) -> None:
    """Change the matrix that folds values out of the latent, which only decoding uses."""
    for layer in every_layer(edits):
        matrix = layer.self_attn.mla_attn.mla_attn.W_UV
        edits.write(matrix, matrix * 1.05)


def skipped(edits: Edits) -> None:
    """Leave one layer out."""
    edits.set(
        edits.layers[LAYER],
        "forward",
        lambda positions, hidden_states, residual, *_: (hidden_states, residual),
    )


def swapped_layers(edits: Edits) -> None:
    """Run two layers in the other order."""
    for first, second in ((2, 3), (3, 2)):
        edits.set(edits.layers[first], "forward", edits.layers[second].forward.__get__(edits.layers[second]))


def rounded(dtype: torch.dtype, path: str, scale: float = 1.0) -> Plant:
    """Return a change that rounds a module's output of every layer to another type and back."""

    def plant(edits: Edits) -> None:
        limit = torch.finfo(dtype).max

        def change(_: Any, __: Any, output: Tensor) -> Tensor:
            return ((output.float() * scale).clamp(-limit, limit).to(dtype).float() / scale).to(output.dtype)

        for layer in every_layer(edits):
            edits.wrap(layer.get_submodule(path), change)

    return plant


def saturated(edits: Edits) -> None:
    """Cut the shared experts' outputs off at a quarter of their largest, as a small type would."""

    def change(_: Any, __: Any, output: Tensor) -> Tensor:
        limit = float(output.abs().max()) / 4
        return output.clamp(-limit, limit)

    for layer in MOE_LAYERS:
        edits.wrap(edits.layers[layer].mlp.shared_experts.down_proj, _first(change))


def _first(change: Any) -> Any:
    """Return a hook that changes the first of a linear layer's two outputs."""

    def hook(module: Any, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(module, arguments, output[0]), *output[1:])
        return change(module, arguments, output)

    return hook


def int8_of_a_tensor(values: Tensor) -> Tensor:
    """Return a weight rounded to int8 with one scale for all of it."""
    scale = values.float().abs().max() / 127
    return ((values.float() / scale).round() * scale).to(values.dtype)


def rest_in_int8(one_scale: bool) -> Plant:
    """Return all linear layers but routers and kv_b in int8, with a scale a row or one for a matrix."""

    def change(values: Tensor) -> Tensor:
        if one_scale:
            return int8_of_a_tensor(values)
        scale = values.float().abs().amax(1, keepdim=True) / 127
        return ((values.float() / scale).round() * scale).to(values.dtype)

    paths = ("self_attn.fused_qkv_a_proj", "self_attn.q_b_proj", "self_attn.o_proj")
    shared = ("mlp.shared_experts.gate_up_proj", "mlp.shared_experts.down_proj")
    return both(
        *(weight(path, change, (0, *MOE_LAYERS)) for path in paths),
        *(weight(path, change, MOE_LAYERS) for path in shared),
    )


def head(change: Any) -> Plant:
    """Return a fault of the head's weight [vocabulary, hidden]; `change` gets it and the embedding."""

    def plant(edits: Edits) -> None:
        values = edits.network.lm_head.weight
        edits.write(values, change(values.detach().clone(), edits.network.model.embed_tokens.weight))

    return plant


def embedding(change: Any) -> Plant:
    """Return a fault of the embedding [vocabulary, hidden]."""

    def plant(edits: Edits) -> None:
        values = edits.network.model.embed_tokens.weight
        edits.write(values, change(values.detach().clone()))

    return plant


def row(number: int, source: int) -> Any:
    """Return a change that gives one row the values of another."""

    def change(values: Tensor) -> Tensor:
        values[number] = values[source]
        return values

    return change


def without_head(values: Tensor) -> Tensor:
    """Return o_proj [hidden, heads * 128] without attention's first head."""
    values[:, :128] = 0
    return values


MSCALE = 0.1 * math.log(4.0) + 1.0

NETWORK_FAULTS = [
    Fault(name="top 3 of experts for 4", kind=ROUTING, plant=router(top_k=3)),
    Fault(name="top 5 of experts for 4", kind=ROUTING, plant=router(top_k=5)),
    Fault(name="gates not normalized", kind=ROUTING, plant=router(renormalize=False)),
    Fault(
        name="4 groups of experts, 2 of them chosen",
        kind=ROUTING,
        plant=router(num_expert_group=4, topk_group=2),
    ),
    Fault(name="softmax for sigmoid in routing", kind=ROUTING, plant=router(scoring_func="softmax")),
    Fault(name="routed scaling factor 1", kind=ROUTING, plant=scaling(1.0)),
    Fault(name="routed scaling factor 2.5 for 2.827", kind=ROUTING, plant=scaling(2.5)),
    Fault(name="no correction bias", kind=ROUTING, plant=bias(MOE_LAYERS, torch.zeros_like)),
    Fault(name="no correction bias, one layer", kind=ROUTING, plant=bias((LAYER,), torch.zeros_like)),
    Fault(
        name="correction bias of another layer",
        kind=ROUTING,
        plant=lambda edits: edits.write(
            edits.layers[2].mlp.gate.e_score_correction_bias, edits.layers[3].mlp.gate.e_score_correction_bias
        ),
    ),
    Fault(name="attention's scale without YaRN's mscale", kind=ATTENTION, plant=softmax_scale(1 / MSCALE**2)),
    Fault(
        name="attention's scale of the latent's width (576 for 192)",
        kind=ATTENTION,
        plant=softmax_scale(math.sqrt(192 / 576)),
    ),
    Fault(
        name="one head's output zero, one layer",
        kind=ATTENTION,
        plant=weight("self_attn.o_proj", without_head),
    ),
    Fault(
        name="heads of o_proj one off, one layer",
        kind=ATTENTION,
        plant=weight("self_attn.o_proj", lambda w: w.roll(128, 1)),
    ),
    Fault(
        name="o_proj x 1.02, one layer", kind=ATTENTION, plant=weight("self_attn.o_proj", lambda w: w * 1.02)
    ),
    Fault(name="values x 1.05 in decoding alone", kind=ATTENTION, plant=decode_only),
    Fault(name="rotary theta 10,000 for 50,000", kind=POSITIONS, plant=positions(base=10000.0)),
    Fault(name="no YaRN scaling (factor 1)", kind=POSITIONS, plant=positions(scaling_factor=1.0)),
    Fault(name="YaRN factor 8 for 4", kind=POSITIONS, plant=positions(scaling_factor=8.0)),
    Fault(name="YaRN beta_fast 32 for 1", kind=POSITIONS, plant=positions(beta_fast=32)),
    Fault(name="mscale applied to positions too", kind=POSITIONS, plant=positions(mscale=MSCALE)),
    Fault(name="rotary table of 64 positions", kind=POSITIONS, plant=old_positions),
    Fault(name="rotary halves for neighbours", kind=POSITIONS, plant=other_pairs),
    Fault(name="a layer's input norm all ones", kind=NORMS, plant=weight("input_layernorm", torch.ones_like)),
    Fault(
        name="norm of the query's latent all ones",
        kind=NORMS,
        plant=weight("self_attn.q_a_layernorm", torch.ones_like),
    ),
    Fault(
        name="a layer's norm x 1.05", kind=NORMS, plant=weight("post_attention_layernorm", lambda w: w * 1.05)
    ),
    Fault(
        name="last norm all ones",
        kind=NORMS,
        plant=lambda edits: edits.write(
            edits.network.model.norm.weight, torch.ones_like(edits.network.model.norm.weight)
        ),
    ),
    Fault(
        name="the embedding for the head", kind=ENDS, plant=head(lambda values, other: other.detach().clone())
    ),
    Fault(name="head one row off", kind=ENDS, plant=head(lambda values, _: values.roll(1, 0))),
    Fault(name="embeddings one row off", kind=ENDS, plant=embedding(lambda values: values.roll(1, 0))),
    Fault(
        name="the last half of the vocabulary's embeddings zero",
        kind=ENDS,
        plant=embedding(
            lambda values: torch.cat(
                [values[: len(values) // 2], torch.zeros_like(values[len(values) // 2 :])]
            )
        ),
    ),
    Fault(name="two special tokens' embeddings alike", kind=ENDS, plant=embedding(row(6, 5))),
    Fault(name="a layer skipped", kind=ORDER, plant=skipped),
    Fault(name="two layers in the other order", kind=ORDER, plant=swapped_layers),
    Fault(
        name="one layer's shared expert missing",
        kind=ORDER,
        plant=weight("mlp.shared_experts.down_proj", torch.zeros_like),
    ),
    Fault(
        name="shared expert's gate and up swapped, one layer",
        kind=ORDER,
        plant=weight("mlp.shared_experts.gate_up_proj", lambda w: w.roll(w.shape[0] // 2, 0)),
    ),
    Fault(name="shared experts' outputs cut off (overflow)", kind=NUMBERS, plant=saturated),
    Fault(
        name="everything else in int8 with one scale a matrix",
        kind=NUMBERS,
        plant=rest_in_int8(one_scale=True),
    ),
    Fault(
        name="everything else in int8 with a scale a row", kind="choice", plant=rest_in_int8(one_scale=False)
    ),
    Fault(
        name="latent cache in fp8",
        kind="choice",
        plant=rounded(torch.float8_e4m3fn, "self_attn.kv_a_layernorm"),
    ),
]
