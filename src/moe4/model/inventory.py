"""What a model holds, from its config alone and without torch: tensors, shapes, the cache's bytes.

Held to transformers' own models by tests/model/test_inventory.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moe4.errors import UnsupportedModelError

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensors:
    """Tensors of one name and shape; `copies` counts the experts where `{expert}` stands in the name."""

    name: str
    shape: tuple[int, ...]
    copies: int = 1
    float32: bool = False
    """Whether it is stored in float32 whatever the model's dtype is."""

    @property
    def is_routed_expert(self) -> bool:
        """Whether they are weights of routed experts."""
        return ".experts.{expert}." in self.name


MLP_LEAVES = ("gate_proj", "up_proj", "down_proj")


# What differs between the families moe4 streams, beside what their configs say. `bias`: of query, key, value.
# `norms`: of queries and keys, per head or over all heads. `shared`: the shared experts' module and width.
@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    num_experts: str
    bias: bool | str = False
    norms: str | None = None
    shared: str | None = None
    shared_gate: bool = False
    correction_bias: bool = False
    latent: bool = False
    norm_gate: str | None = None
    module: str = "mlp"
    leaves: tuple[str, ...] = MLP_LEAVES


_DEEPSEEK = _Family(num_experts="n_routed_experts", shared="n_shared_experts", latent=True)
_DEEPSEEK3 = _Family(
    num_experts="n_routed_experts", shared="n_shared_experts", correction_bias=True, latent=True
)
_GLM = _Family(
    num_experts="n_routed_experts",
    bias="attention_bias",
    norms="head",
    norm_gate="use_qk_norm",
    shared="n_shared_experts",
    correction_bias=True,
)
FAMILIES = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK3,
    "dots1": _Family(
        num_experts="n_routed_experts",
        bias="attention_bias",
        norms="head",
        shared="n_shared_experts",
        correction_bias=True,
    ),
    "glm4_moe": _GLM,
    "kimi_k2": _DEEPSEEK3,
    "mixtral": _Family(num_experts="num_local_experts", module="block_sparse_moe", leaves=("w1", "w3", "w2")),
    "olmoe": _Family(num_experts="num_experts", bias="attention_bias", norms="all"),
    "qwen2_moe": _Family(
        num_experts="num_experts", bias=True, shared="shared_expert_intermediate_size", shared_gate=True
    ),
    "qwen3_moe": _Family(num_experts="num_experts", bias="attention_bias", norms="head"),
}


def num_routed_experts(config: Config) -> int:
    """Return the routed experts of a layer; 0 for a dense model."""
    for key in ("n_routed_experts", "num_experts", "num_local_experts"):
        if config.get(key):
            return int(config[key])
    return 0


def expert_width(config: Config) -> int:
    """Return the routed experts' inner width. `intermediate_size` stands for it in OLMoE."""
    return int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0)


def kv_bytes_per_token(config: Config) -> int:
    """Return a token's BF16 cache bytes in all layers: MLA's latent and rotary key, or keys and values."""
    return 2 * int(config.get("num_hidden_layers") or 1) * _cache_width(config)


def w4a16_group_size(config: Config) -> int | None:
    """Return the group size of a W4A16 release; None for other weights."""
    quantization = config.get("quantization_config") or {}
    if quantization.get("format") != "pack-quantized":
        return None
    for group in (quantization.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        if weights.get("num_bits") == 4 and weights.get("group_size"):
            return int(weights["group_size"])
    return None


def is_moe_layer(config: Config, layer: int) -> bool:
    """Say whether a decoder layer has routed experts, as the families' configs spell it."""
    if config.get("model_type") == "qwen2_moe" or config.get("model_type") == "qwen3_moe":
        step = int(config.get("decoder_sparse_step", 1))
        return layer not in (config.get("mlp_only_layers") or []) and (layer + 1) % step == 0
    return layer >= int(config.get("first_k_dense_replace", 0))


def list_tensors(config: Config) -> list[Tensors]:
    """Return every tensor of the BF16 checkpoint that `config` describes, in the checkpoint's names.

    Raises UnsupportedModelError for a family moe4 does not know or a config that lacks a size.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise UnsupportedModelError(
            f"model_type {config.get('model_type')!r} cannot be sized from a config alone; known are "
            f"{', '.join(sorted(FAMILIES))}. Give a folder or repository with its safetensors files"
        )
    try:
        return list(_iterate(config, family))
    except (KeyError, TypeError) as error:
        raise UnsupportedModelError(f"the {config['model_type']} config has no {error}") from None


def _iterate(config: Config, family: _Family) -> Iterator[Tensors]:
    hidden, vocab = int(config["hidden_size"]), int(config["vocab_size"])
    yield Tensors(name="model.embed_tokens.weight", shape=(vocab, hidden))
    for layer in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Tensors(name=f"{prefix}{norm}.weight", shape=(hidden,))
        yield from (_latent_attention if family.latent else _attention)(config, family, f"{prefix}self_attn.")
        if is_moe_layer(config, layer):
            yield from _experts(config, family, f"{prefix}{family.module}.")
        else:
            yield from _mlp(f"{prefix}mlp.", hidden, int(config["intermediate_size"]))
    yield Tensors(name="model.norm.weight", shape=(hidden,))
    if not config.get("tie_word_embeddings"):
        yield Tensors(name="lm_head.weight", shape=(vocab, hidden))


def _mlp(
    prefix: str, hidden: int, width: int, copies: int = 1, leaves: tuple[str, ...] = MLP_LEAVES
) -> Iterator[Tensors]:
    for leaf, shape in zip(leaves, ((width, hidden), (width, hidden), (hidden, width)), strict=True):
        yield Tensors(name=f"{prefix}{leaf}.weight", shape=shape, copies=copies)


def _experts(config: Config, family: _Family, prefix: str) -> Iterator[Tensors]:
    hidden, width = int(config["hidden_size"]), expert_width(config)
    num_experts = int(config[family.num_experts])
    yield Tensors(name=f"{prefix}gate.weight", shape=(num_experts, hidden))
    if family.correction_bias:
        yield Tensors(name=f"{prefix}gate.e_score_correction_bias", shape=(num_experts,), float32=True)
    if family.shared_gate:
        yield from _mlp(f"{prefix}shared_expert.", hidden, int(config[str(family.shared)]))
        yield Tensors(name=f"{prefix}shared_expert_gate.weight", shape=(1, hidden))
    elif family.shared and config.get(family.shared):
        yield from _mlp(f"{prefix}shared_experts.", hidden, width * int(config[family.shared]))
    yield from _mlp(f"{prefix}experts.{{expert}}.", hidden, width, num_experts, family.leaves)


def _latent_attention(config: Config, family: _Family, prefix: str) -> Iterator[Tensors]:
    """Yield the tensors of multi-head latent attention (MLA)."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    nope, rope = int(config["qk_nope_head_dim"]), int(config["qk_rope_head_dim"])
    value, rank = int(config["v_head_dim"]), int(config["kv_lora_rank"])
    shapes: dict[str, tuple[int, ...]] = {}
    if config.get("q_lora_rank"):
        q_rank = int(config["q_lora_rank"])
        shapes["q_a_proj"] = (q_rank, hidden)
        shapes["q_a_layernorm"] = (q_rank,)
        shapes["q_b_proj"] = (heads * (nope + rope), q_rank)
    else:
        shapes["q_proj"] = (heads * (nope + rope), hidden)
    shapes["kv_a_proj_with_mqa"] = (rank + rope, hidden)
    shapes["kv_a_layernorm"] = (rank,)
    shapes["kv_b_proj"] = (heads * (nope + value), rank)
    shapes["o_proj"] = (hidden, heads * value)
    for name, shape in shapes.items():
        yield Tensors(name=f"{prefix}{name}.weight", shape=shape)


def _attention(config: Config, family: _Family, prefix: str) -> Iterator[Tensors]:
    """Yield the tensors of attention with keys and values in groups of heads."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads, head_dim = int(config.get("num_key_value_heads") or heads), _head_dim(config)
    widths = {"q_proj": heads * head_dim, "k_proj": kv_heads * head_dim, "v_proj": kv_heads * head_dim}
    bias = family.bias if isinstance(family.bias, bool) else bool(config.get(family.bias))
    for name, width in widths.items():
        yield Tensors(name=f"{prefix}{name}.weight", shape=(width, hidden))
        if bias:
            yield Tensors(name=f"{prefix}{name}.bias", shape=(width,))
    yield Tensors(name=f"{prefix}o_proj.weight", shape=(hidden, heads * head_dim))
    if bias and config["model_type"] in ("olmoe", "qwen3_moe", "dots1"):
        yield Tensors(name=f"{prefix}o_proj.bias", shape=(hidden,))
    if family.norms and (family.norm_gate is None or config.get(family.norm_gate)):
        whole = family.norms == "all"
        for name, width in (("q_norm", widths["q_proj"]), ("k_norm", widths["k_proj"])):
            yield Tensors(name=f"{prefix}{name}.weight", shape=(width if whole else head_dim,))


def _head_dim(config: Config) -> int:
    heads = int(config.get("num_attention_heads") or 1)
    return int(config.get("head_dim") or int(config.get("hidden_size") or heads) // heads)


def _cache_width(config: Config) -> int:
    if config.get("kv_lora_rank"):
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    heads = int(config.get("num_attention_heads") or 1)
    return 2 * int(config.get("num_key_value_heads") or heads) * _head_dim(config)
