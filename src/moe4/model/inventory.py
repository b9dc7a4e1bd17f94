"""What a model holds, from its config alone and without torch: tensors, shapes, the cache's bytes.

Held to transformers' own models by tests/model/test_inventory.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from moe4.config import Family, LatentFamily
from moe4.config.families import Qwen2Moe
from moe4.config.text import RoutedFamily


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


# What differs between the families moe4 streams, beside what their configs say. `norms`: of queries and keys,
# per head or over all heads. `leaves`: what an expert's gate, up and down are called.
@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    norms: str | None = None
    correction_bias: bool = False
    output_bias: bool = False
    module: str = "mlp"
    leaves: tuple[str, ...] = MLP_LEAVES


_DEEPSEEK3 = _Layout(correction_bias=True)
LAYOUTS = {
    "deepseek_v2": _Layout(),
    "deepseek_v3": _DEEPSEEK3,
    "dots1": _Layout(norms="head", correction_bias=True, output_bias=True),
    "glm4_moe": _Layout(norms="head", correction_bias=True),
    "kimi_k2": _DEEPSEEK3,
    "mixtral": _Layout(module="block_sparse_moe", leaves=("w1", "w3", "w2")),
    "olmoe": _Layout(norms="all"),
    "qwen2_moe": _Layout(),
    "qwen3_moe": _Layout(norms="head"),
}


def list_tensors(config: Family) -> list[Tensors]:
    """Return every tensor of the BF16 checkpoint that `config` describes, in the names of its text model."""
    return list(_iterate(config, LAYOUTS[config.model_type]))


def _iterate(config: Family, layout: _Layout) -> Iterator[Tensors]:
    hidden, vocab = config.hidden_size, config.vocab_size
    yield Tensors(name="model.embed_tokens.weight", shape=(vocab, hidden))
    for layer, has_experts in enumerate(config.expert_layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Tensors(name=f"{prefix}{norm}.weight", shape=(hidden,))
        if isinstance(config, LatentFamily):
            yield from _latent_attention(config, f"{prefix}self_attn.")
        else:
            yield from _attention(config, layout, f"{prefix}self_attn.")
        if has_experts:
            yield from _experts(config, layout, f"{prefix}{layout.module}.")
        else:
            yield from _mlp(f"{prefix}mlp.", hidden, config.intermediate_size)
    yield Tensors(name="model.norm.weight", shape=(hidden,))
    if not config.tie_word_embeddings:
        yield Tensors(name="lm_head.weight", shape=(vocab, hidden))


def _mlp(
    prefix: str, hidden: int, width: int, copies: int = 1, leaves: tuple[str, ...] = MLP_LEAVES
) -> Iterator[Tensors]:
    for leaf, shape in zip(leaves, ((width, hidden), (width, hidden), (hidden, width)), strict=True):
        yield Tensors(name=f"{prefix}{leaf}.weight", shape=shape, copies=copies)


def _experts(config: Family, layout: _Layout, prefix: str) -> Iterator[Tensors]:
    hidden, num_experts = config.hidden_size, config.num_routed_experts
    yield Tensors(name=f"{prefix}gate.weight", shape=(num_experts, hidden))
    if layout.correction_bias:
        yield Tensors(name=f"{prefix}gate.e_score_correction_bias", shape=(num_experts,), float32=True)
    if isinstance(config, Qwen2Moe):
        yield from _mlp(f"{prefix}shared_expert.", hidden, config.shared_expert_intermediate_size)
        yield Tensors(name=f"{prefix}shared_expert_gate.weight", shape=(1, hidden))
    elif isinstance(config, RoutedFamily):
        yield from _mlp(f"{prefix}shared_experts.", hidden, config.expert_width * config.n_shared_experts)
    yield from _mlp(f"{prefix}experts.{{expert}}.", hidden, config.expert_width, num_experts, layout.leaves)


def _latent_attention(config: LatentFamily, prefix: str) -> Iterator[Tensors]:
    """Yield the tensors of multi-head latent attention (MLA)."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    value, rank = config.v_head_dim, config.kv_lora_rank
    shapes: dict[str, tuple[int, ...]] = {}
    if config.q_lora_rank:
        q_rank = config.q_lora_rank
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


def _attention(config: Family, layout: _Layout, prefix: str) -> Iterator[Tensors]:
    """Yield the tensors of attention with keys and values in groups of heads."""
    hidden, heads, head_size = config.hidden_size, config.num_attention_heads, config.head_size
    key_width = config.num_kv_heads * head_size
    widths = {"q_proj": heads * head_size, "k_proj": key_width, "v_proj": key_width}
    for name, width in widths.items():
        yield Tensors(name=f"{prefix}{name}.weight", shape=(width, hidden))
        if config.has_attention_bias:
            yield Tensors(name=f"{prefix}{name}.bias", shape=(width,))
    yield Tensors(name=f"{prefix}o_proj.weight", shape=(hidden, heads * head_size))
    if layout.output_bias and config.has_attention_bias:
        yield Tensors(name=f"{prefix}o_proj.bias", shape=(hidden,))
    if layout.norms and config.has_query_norms:
        whole = layout.norms == "all"
        for name, width in (("q_norm", widths["q_proj"]), ("k_norm", key_width)):
            yield Tensors(name=f"{prefix}{name}.weight", shape=(width if whole else head_size,))
