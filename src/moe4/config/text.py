"""What is common to the families' configs: their fields, and how these must agree.

The defaults are transformers', which vLLM takes too; tests/config holds them to its classes. Where
transformers' network and vLLM treat a field differently, `Only` allows the values that both treat alike and
says why.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from moe4.config.parts import (
    NULL,
    Count,
    Decimal,
    Dtype,
    Epsilon,
    Experts,
    Heads,
    Layers,
    Number,
    Quantization,
    Rope,
    Share,
    Theta,
    Tokens,
    Vocabulary,
    Width,
)
from moe4.config.tokens import PadTokenId, TokenId, TokenIds, beyond_vocabulary
from moe4.schema import Foreign, Only, more_than, not_multiple

EVERY_ROPE = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")

SILU = Only(("silu",), "vLLM has no other activation for this family's experts")
NO_BIAS = Only((False,), "vLLM has no bias there and would leave it out")
EVERY_LAYER = Only((1, None), "transformers ignores it and gives every layer after the dense ones experts")
OWN_HEAD = Only((False,), "vLLM gives this family a separate head, which would stay unset")
SIGMOID = Only(("sigmoid", None), "this family's code routes by sigmoid")
CORRECTED = Only(("noaux_tc", None), "this family's code chooses by scores with a correction bias")
FULL_ROTARY = Only((1, None), "transformers and vLLM disagree about rotating a part of this family's heads")


class TextModel(Foreign):
    """What moe4 reads of any language model's config, also of a family that it only serves.

    vLLM knows far more families than moe4, so nothing is required here, and 0 stands for absent as null does.
    """

    model_type: str | None = None
    vocab_size: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    hidden_size: Count | None = None
    num_hidden_layers: Annotated[int, Field(ge=0, le=1024)] | None = None
    num_layers: Annotated[int, Field(ge=0, le=1024)] | None = None
    layers_block_type: Annotated[list[str], Field(max_length=1024)] | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    kv_lora_rank: Count | None = None
    qk_rope_head_dim: Count | None = None
    intermediate_size: Count | None = None
    moe_intermediate_size: Count | None = None
    n_routed_experts: Count | None = None
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    max_position_embeddings: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    tie_word_embeddings: bool | None = None
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=1024)] | None = None
    quantization_config: Quantization | None = None

    @property
    def num_decoder_layers(self) -> int:
        """The decoder layers, however the family says how many there are; 0 if it does not."""
        return self.num_hidden_layers or self.num_layers or len(self.layers_block_type or ())

    @property
    def num_routed_experts(self) -> int:
        """The routed experts of a layer; 0 for a dense model."""
        return self.n_routed_experts or self.num_experts or self.num_local_experts or 0

    @property
    def expert_width(self) -> int:
        """The routed experts' inner width."""
        return self.moe_intermediate_size or self.intermediate_size or 0

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.num_attention_heads or 1

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values, before MLA makes them one."""
        return self.num_key_value_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """The width of an attention head that is not MLA's."""
        return self.head_dim or (self.hidden_size or self.num_heads) // self.num_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """A token's BF16 cache bytes in all layers: MLA's latent and rotary key, or keys and values."""
        if self.kv_lora_rank:
            width = self.kv_lora_rank + (self.qk_rope_head_dim or 0)
        else:
            width = 2 * self.num_kv_heads * self.head_size
        return 2 * (self.num_decoder_layers or 1) * width


class Family(TextModel):
    """A family that moe4 quantizes, with all that decides its tensors and its answers."""

    architecture: ClassVar[str]
    experts_names: ClassVar[tuple[str, ...]]
    """What this family calls the number of its routed experts, then what transformers takes for it."""
    rope_kinds: ClassVar[tuple[str, ...]] = EVERY_ROPE
    never_null: ClassVar[tuple[str, ...]] = ("rope_theta", "head_dim")
    """Fields that may be absent, where transformers has no meaning for null."""

    model_type: str
    architectures: list[str] | None = None
    vocab_size: Vocabulary
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    n_routed_experts: Experts | None = None
    num_experts: Experts | None = None
    num_local_experts: Experts | None = None
    intermediate_size: Width
    num_experts_per_tok: Experts
    max_position_embeddings: Tokens
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: Annotated[str, SILU] = "silu"
    tie_word_embeddings: bool = False
    bos_token_id: TokenId | None = None
    eos_token_id: TokenIds = None
    pad_token_id: PadTokenId | None = None
    dtype: Dtype = None
    torch_dtype: Dtype = None
    rope_theta: Theta | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    partial_rotary_factor: Annotated[float | None, FULL_ROTARY] = None
    sliding_window: Count | None = None
    layer_types: list[str] | None = None
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None
    norm_topk_prob: bool = False
    moe_layer_freq: Annotated[int | None, EVERY_LAYER] = None
    is_causal: Annotated[bool | None, Only((True, None), "transformers' network is causal")] = None
    # What decides no answer, and is checked all the same by transformers when it reads a config.
    attention_dropout: Share | None = 0.0
    initializer_range: Decimal = 0.02
    use_cache: bool = True
    output_router_logits: bool = False
    num_labels: Count = 2
    id2label: dict[Number, object] | None = None
    per_layer_config: Annotated[
        dict[str, object] | None,
        Only((None, {}), "transformers would build layers by it, but vLLM would not"),
    ] = None
    # What vLLM obeys in a config of any family, and transformers' networks of these ignore.
    index_topk: Annotated[int | None, Only((None,), "vLLM would attend sparsely")] = None
    attention_chunk_size: Annotated[int | None, Only((None,), "vLLM would attend in chunks")] = None
    rswa_window: Annotated[int | None, Only((None,), "vLLM would slide a window")] = None

    @property
    def experts_name(self) -> str:
        """The field that holds the number of routed experts."""
        return next((name for name in self.experts_names if getattr(self, name)), self.experts_names[0])

    @property
    def rope(self) -> Rope:
        """The rotary embedding's settings, whichever way they are spelled."""
        return self.rope_scaling or self.rope_parameters or Rope()

    @property
    def expert_layers(self) -> list[bool]:
        """For each decoder layer, whether it has routed experts."""
        return [True] * self.num_hidden_layers

    def faults(self) -> Iterator[str]:
        """Yield what does not fit together."""
        for name in (*self.never_null, *self.experts_names):
            if name in self.model_fields_set and getattr(self, name) is None:
                yield NULL.format(name)
        yield from self._expert_faults()
        yield from self._attention_faults()
        yield from self._rope_faults()
        yield from self._window_faults()
        if self.architectures and self.architectures != [self.architecture]:
            found = ", ".join(self.architectures)
            yield f"architectures is {found}; vLLM must be told {self.architecture} for {self.model_type}"
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        yield from beyond_vocabulary({name: getattr(self, name) for name in names}, self.vocab_size)

    def missing(self) -> Iterator[str]:
        """Yield what may be absent where a model is sized, but not where it is run."""
        yield from ()

    def _expert_faults(self) -> Iterator[str]:
        name, total = self.experts_name, self.num_routed_experts
        if not getattr(self, name):
            yield f"{name} is missing"
            return
        for other in ("n_routed_experts", "num_experts", "num_local_experts"):
            if (found := getattr(self, other)) and found != getattr(self, name):
                yield f"{other} is {found}, but {name} is {getattr(self, name)}"
        if self.num_experts_per_tok > total:
            yield more_than("num_experts_per_tok", self.num_experts_per_tok, total, name)
        if not any(self.expert_layers):
            yield (
                f"num_hidden_layers is {self.num_hidden_layers} (decoder_sparse_step, mlp_only_layers): "
                "the model has no layer with routed experts"
            )

    def _attention_faults(self) -> Iterator[str]:
        heads, hidden = self.num_attention_heads, self.hidden_size
        if heads % self.num_kv_heads:
            yield not_multiple("num_attention_heads", heads, self.num_kv_heads, "num_key_value_heads")
        if self.head_dim is None and hidden % heads:
            yield not_multiple("hidden_size", hidden, heads, "num_attention_heads")
        elif self.head_size % 2:
            yield f"heads of {self.head_size} (head_dim) cannot be rotated: their width must be even"

    def _rope_faults(self) -> Iterator[str]:
        if self.rope_scaling and self.rope_parameters and self.rope_scaling != self.rope_parameters:
            yield "rope_scaling and rope_parameters differ; keep one of them"
        inner = self.rope.rope_theta
        if inner is not None and self.rope_theta is not None and inner != self.rope_theta:
            yield f"rope_theta is {self.rope_theta:g}, but {inner:g} beside the scaling"
        if self.rope.kind not in self.rope_kinds:
            yield f'rope_type is "{self.rope.kind}"; expected one of {", ".join(self.rope_kinds)}'
        part = self.rope.partial_rotary_factor
        if part not in (None, 1) and not self.rotates_a_part:
            yield f"partial_rotary_factor is {part}; it must be 1: {FULL_ROTARY.why}"

    @property
    def has_attention_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return False

    @property
    def has_query_norms(self) -> bool:
        """Whether queries and keys are normalized, if the family's code can."""
        return True

    @property
    def rotates_a_part(self) -> bool:
        """Whether a part of each head may be rotated."""
        return False

    @property
    def slides(self) -> bool:
        """Whether a layer attends to a window of the tokens before it."""
        return bool(self.sliding_window)

    def _window_faults(self) -> Iterator[str]:
        for name in ("layer_types", "mlp_layer_types"):
            found = getattr(self, name)
            if found is not None and len(found) != self.num_hidden_layers:
                yield f"{name} has {len(found)} entries, num_hidden_layers is {self.num_hidden_layers}"
        types = self.layer_types
        others = sorted(set(types or ()) - {"full_attention"})
        if others or (types is None and self.slides):
            found = (
                f"layer_types has {', '.join(others)}"
                if others
                else f"sliding_window is {self.sliding_window}"
            )
            yield f"only full attention is supported; {found}"


class RoutedFamily(Family):
    """Dense layers first, then routed and shared experts, as DeepSeek began it."""

    intermediate_size: Width = 10944
    moe_intermediate_size: Width
    n_shared_experts: Experts = 1
    first_k_dense_replace: Count = 0
    routed_scaling_factor: Annotated[Decimal, Field(ge=1e-6)] = 1.0
    n_group: Experts = 1
    topk_group: Experts = 1
    attention_bias: Annotated[bool, NO_BIAS] = False
    mlp_bias: Annotated[bool, NO_BIAS] = False
    scoring_func: Annotated[str | None, SIGMOID] = None
    topk_method: Annotated[str | None, CORRECTED] = None

    experts_in_group: ClassVar[int] = 2
    """The least a group may have: its score is the sum of its best two."""

    @property
    def expert_layers(self) -> list[bool]:
        """For each decoder layer, whether it has routed experts."""
        return [layer >= self.first_k_dense_replace for layer in range(self.num_hidden_layers)]

    def _expert_faults(self) -> Iterator[str]:
        if self.first_k_dense_replace >= self.num_hidden_layers:
            yield (
                f"first_k_dense_replace is {self.first_k_dense_replace} and num_hidden_layers is "
                f"{self.num_hidden_layers}: the model has no layer with routed experts"
            )
            return
        yield from super()._expert_faults()
        name, total, groups = self.experts_name, self.num_routed_experts, self.n_group
        if self.topk_group > groups:
            yield more_than("topk_group", self.topk_group, groups, "n_group")
        if total % groups:
            yield f"n_group is {groups}, which does not divide the {total} of {name}"
            return
        if 0 < total // groups < self.experts_in_group:
            yield f"n_group is {groups}, which leaves groups of fewer than two of the {total} of {name}"
        reach = self.topk_group * (total // groups)
        if reach < self.num_experts_per_tok <= total:
            yield (
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than the {reach} experts "
                f"in {self.topk_group} of {groups} groups (topk_group, n_group)"
            )


class LatentFamily(RoutedFamily):
    """Multi-head latent attention (MLA)."""

    rope_kinds = ("default", "yarn")

    tie_word_embeddings: Annotated[bool, OWN_HEAD] = False
    q_lora_rank: Width | None = 1536
    kv_lora_rank: Width = 512
    qk_nope_head_dim: Width = 128
    qk_rope_head_dim: Width = 64
    v_head_dim: Width = 128

    def _attention_faults(self) -> Iterator[str]:
        heads, rotary = self.num_attention_heads, self.qk_rope_head_dim
        if self.num_kv_heads != heads:
            yield (
                f"num_key_value_heads is {self.num_kv_heads}; with MLA it must be the {heads} of "
                "num_attention_heads"
            )
        if rotary % 2:
            yield f"qk_rope_head_dim is {rotary}; it must be even to be rotated"
        if self.head_dim not in (None, rotary):
            yield (
                f"head_dim is {self.head_dim}; with MLA it must be absent or the {rotary} of qk_rope_head_dim"
            )

    def _rope_faults(self) -> Iterator[str]:
        yield from super()._rope_faults()
        rope = self.rope
        if rope.kind != "yarn":
            return
        if rope.attention_factor is not None:
            yield "attention_factor must be absent: vLLM's yarn for this family does not obey it"
        if rope.truncate is False:
            yield "truncate must be true or absent: vLLM's yarn for this family always truncates"
        alike = bool(rope.mscale) if rope.mscale_all_dim else rope.mscale in (None, 1)
        if not alike:
            yield "mscale and mscale_all_dim must both be given: transformers and vLLM differ without one"
