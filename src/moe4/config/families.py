"""The families that moe4 quantizes: what each has beside `text.py`'s, and its own rules."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from moe4.config.parts import Count, Decimal, Epsilon, Experts, Heads, Layers, Share, Tokens, Width
from moe4.config.text import (
    CORRECTED,
    NO_BIAS,
    OWN_HEAD,
    SIGMOID,
    Family,
    LatentFamily,
    RoutedFamily,
)
from moe4.schema import Only, not_multiple

ALWAYS_NORMED = Only((True,), "the gate weights of this family are always normalized")
NEVER_NORMED = Only((False,), "vLLM never normalizes the gate weights of this family")
NO_FACTOR = Only((1, None), "this family's code does not scale its experts' sum")
SOFTMAX = Only(("softmax", None), "this family's code routes by softmax")
GREEDY = Only(("greedy", None), "this family's code chooses the best experts of all")
ONE_GROUP = Only((1, None), "this family's code does not group its experts")


class DeepseekV2(LatentFamily):
    """DeepSeek-V2 and V2-Lite."""

    architecture = "DeepseekV2ForCausalLM"
    experts_names = ("n_routed_experts", "num_experts")
    experts_in_group = 1
    never_null = ("rope_theta",)

    attention_dropout: Decimal | None = 0.0
    pretraining_tp: int | None = 1
    intermediate_size: Width = 11008
    max_position_embeddings: Tokens = 2048
    n_shared_experts: Experts = 2
    n_group: Experts
    topk_group: Experts
    norm_topk_prob: Annotated[
        bool, Only((False,), "vLLM would normalize the gate weights, but transformers does not")
    ] = False
    scoring_func: Annotated[str | None, SOFTMAX] = None
    topk_method: Annotated[
        str, Only(("greedy", "group_limited_greedy"), "transformers knows no other for this family")
    ] = "greedy"

    def _expert_faults(self) -> Iterator[str]:
        yield from super()._expert_faults()
        if self.topk_method == "greedy" and self.topk_group < self.n_group:
            yield (
                f"topk_group is {self.topk_group} of the {self.n_group} of n_group, but topk_method is "
                "greedy: vLLM would leave groups out, transformers would not"
            )

    def _attention_faults(self) -> Iterator[str]:
        yield from super()._attention_faults()
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            yield not_multiple("hidden_size", self.hidden_size, heads, "num_attention_heads")


class DeepseekV3(LatentFamily):
    """DeepSeek-V3, R1 and Kimi-K2."""

    architecture = "DeepseekV3ForCausalLM"
    experts_names = ("n_routed_experts", "num_local_experts")

    pretraining_tp: int | None = 1
    num_mtp_layers: Count = 1
    intermediate_size: Width = 18432
    max_position_embeddings: Tokens = 4096
    num_key_value_heads: Heads | None = 128
    num_experts_per_tok: Experts = 8
    n_group: Experts = 8
    topk_group: Experts = 4
    first_k_dense_replace: Count = 3
    norm_topk_prob: bool = True
    routed_scaling_factor: Annotated[Decimal, Field(ge=1e-6)] = 2.5
    rope_interleave: Annotated[bool, Only((True,), "vLLM always rotates neighbours")] = True

    def missing(self) -> Iterator[str]:
        """Yield what must be there before this model is run: transformers does without, vLLM does not."""
        if self.scoring_func is None:
            yield (
                f'scoring_func is missing: vLLM would take "softmax", while {SIGMOID.why}; '
                'set it to "sigmoid"'
            )
        if self.topk_method is None:
            yield (
                f"topk_method is missing: vLLM would have no correction bias, while {CORRECTED.why}; "
                'set it to "noaux_tc"'
            )


class Dots1(RoutedFamily):
    """dots.llm1."""

    architecture = "Dots1ForCausalLM"
    experts_names = ("n_routed_experts", "num_local_experts")

    max_position_embeddings: Tokens = 2048
    num_key_value_heads: Heads | None = 32
    n_shared_experts: Experts
    attention_bias: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: Count | None = 62
    # The published config says noaux_tc here; nothing reads it.
    scoring_func: Annotated[str | None, Only(("sigmoid", "noaux_tc", None), SIGMOID.why)] = None

    @property
    def has_attention_bias(self) -> bool:
        """Whether queries, keys and values have biases, and the output too."""
        return self.attention_bias

    @property
    def slides(self) -> bool:
        """Whether a layer attends to a window: those from `max_window_layers` on do."""
        return bool(self.sliding_window) and (self.max_window_layers or 0) < self.num_hidden_layers


class Glm4Moe(RoutedFamily):
    """GLM-4.5, 4.6 and 4.7."""

    architecture = "Glm4MoeForCausalLM"
    experts_names = ("n_routed_experts", "num_local_experts")

    max_position_embeddings: Tokens = 131072
    num_key_value_heads: Heads = 8
    num_experts_per_tok: Experts = 8
    first_k_dense_replace: Count = 1
    norm_topk_prob: bool = True
    rms_norm_eps: Epsilon = 1e-5
    num_mtp_layers: Count = 1
    attention_dropout: Share = 0.0
    tie_word_embeddings: Annotated[bool, OWN_HEAD] = False
    attention_bias: bool = False
    use_qk_norm: bool = False
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 0.5

    @property
    def has_attention_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias

    @property
    def has_query_norms(self) -> bool:
        """Whether queries and keys are normalized."""
        return self.use_qk_norm

    @property
    def rotates_a_part(self) -> bool:
        """Whether a part of each head may be rotated."""
        return True

    def _attention_faults(self) -> Iterator[str]:
        yield from super()._attention_faults()
        part = self.rope.partial_rotary_factor or self.partial_rotary_factor
        if int(self.head_size * part) % 2 or int(self.head_size * part) < 2:
            yield f"partial_rotary_factor is {part}, an odd part of heads of {self.head_size} (head_dim)"


class _Plain(Family):
    """No groups of experts, no correction bias: the best experts of all, by softmax."""

    scoring_func: Annotated[str | None, SOFTMAX] = None
    topk_method: Annotated[str | None, GREEDY] = None
    n_group: Annotated[int | None, ONE_GROUP] = None
    topk_group: Annotated[int | None, ONE_GROUP] = None
    routed_scaling_factor: Annotated[float | None, NO_FACTOR] = None
    attention_bias: Annotated[bool, NO_BIAS] = False
    attention_dropout: Share = 0.0
    router_aux_loss_coef: Decimal = 0.001


class Mixtral(_Plain):
    """Mixtral."""

    architecture = "MixtralForCausalLM"
    experts_names = ("num_local_experts", "num_experts")
    never_null = ("rope_theta",)

    router_jitter_noise: Decimal = 0.0
    max_position_embeddings: Tokens = 131072
    num_key_value_heads: Heads = 8
    num_experts_per_tok: Experts = 2
    rms_norm_eps: Epsilon = 1e-5
    norm_topk_prob: Annotated[bool, ALWAYS_NORMED] = True

    @property
    def expert_width(self) -> int:
        """The routed experts' inner width."""
        return self.intermediate_size


class Olmoe(_Plain):
    """OLMoE."""

    architecture = "OlmoeForCausalLM"
    experts_names = ("num_experts", "num_local_experts")

    max_position_embeddings: Tokens = 4096
    num_experts_per_tok: Experts = 8
    router_aux_loss_coef: Decimal = 0.01
    rms_norm_eps: Annotated[Epsilon, Only((1e-5,), "vLLM uses 1e-05 whatever the config says")] = 1e-5
    norm_topk_prob: Annotated[bool, NEVER_NORMED] = False
    tie_word_embeddings: Annotated[bool, OWN_HEAD] = False
    clip_qkv: Annotated[float | None, Only((None,), "vLLM does not clip queries, keys and values")] = None

    @property
    def expert_width(self) -> int:
        """The routed experts' inner width."""
        return self.intermediate_size

    def _attention_faults(self) -> Iterator[str]:
        yield from super()._attention_faults()
        yield from _whole_heads(self)


class _Qwen(_Plain):
    """Qwen's: some layers may be dense."""

    moe_intermediate_size: Width
    decoder_sparse_step: Layers = 1
    mlp_only_layers: list[Count] | None = None
    sliding_window: Count | None = 4096
    use_sliding_window: bool = False
    dual_chunk_attention_config: Annotated[
        dict[str, object] | None, Only((None,), "vLLM would attend in chunks, but transformers does not")
    ] = None

    @property
    def expert_layers(self) -> list[bool]:
        """For each decoder layer, whether it has routed experts."""
        dense = self.mlp_only_layers or []
        return [
            layer not in dense and (layer + 1) % self.decoder_sparse_step == 0
            for layer in range(self.num_hidden_layers)
        ]

    @property
    def slides(self) -> bool:
        """Whether a layer attends to a window of the tokens before it."""
        return self.use_sliding_window

    def _expert_faults(self) -> Iterator[str]:
        yield from super()._expert_faults()
        beyond = [layer for layer in self.mlp_only_layers or [] if layer >= self.num_hidden_layers]
        if beyond:
            yield f"mlp_only_layers names {beyond[0]}, past the {self.num_hidden_layers} of num_hidden_layers"


class Qwen2Moe(_Qwen):
    """Qwen1.5-MoE and Qwen2-MoE."""

    architecture = "Qwen2MoeForCausalLM"
    experts_names = ("num_experts",)

    intermediate_size: Width = 5632
    max_position_embeddings: Tokens = 32768
    num_key_value_heads: Heads = 16
    max_window_layers: Count = 28
    num_experts_per_tok: Experts = 4
    shared_expert_intermediate_size: Width = 5632
    qkv_bias: Annotated[bool, Only((True,), "vLLM always has these biases")] = True

    @property
    def has_attention_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return True

    def _attention_faults(self) -> Iterator[str]:
        yield from super()._attention_faults()
        yield from _whole_heads(self)


class Qwen3Moe(_Qwen):
    """Qwen3-MoE."""

    architecture = "Qwen3MoeForCausalLM"
    experts_names = ("num_experts", "num_local_experts")

    intermediate_size: Width = 6144
    max_position_embeddings: Tokens = 32768
    num_key_value_heads: Heads = 4
    num_experts_per_tok: Experts = 8
    shared_expert_intermediate_size: Annotated[
        int, Only((0,), "vLLM would add a shared expert, but transformers' network has none")
    ] = 0


def _whole_heads(config: Family) -> Iterator[str]:
    """Yield a fault where vLLM divides `hidden_size` by the heads and transformers takes `head_dim`."""
    width = config.hidden_size // config.num_attention_heads
    if config.head_dim not in (None, width):
        yield (
            f"head_dim is {config.head_dim}; vLLM takes the {width} of hidden_size / num_attention_heads "
            "for this family"
        )


FAMILIES: dict[str, type[Family]] = {
    "deepseek_v2": DeepseekV2,
    "deepseek_v3": DeepseekV3,
    "dots1": Dots1,
    "glm4_moe": Glm4Moe,
    "kimi_k2": DeepseekV3,
    "mixtral": Mixtral,
    "olmoe": Olmoe,
    "qwen2_moe": Qwen2Moe,
    "qwen3_moe": Qwen3Moe,
}

# Families whose config transformers' own class checks, and whose network and tensors' names are its own. Each
# is held to transformers' whole model by tests/quantize/run/test_families.py.
BY_TRANSFORMERS: frozenset[str] = frozenset(
    [
        "ernie4_5_moe",
        "glm4_moe_lite",
        "solar_open",
        "minimax_m2",
        "qwen3_next",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_vl_moe",
        "deepseek_v32",
        "deepseek_v4",
        "glm_moe_dsa",
        "gpt_oss",
        "mistral4",
        "phimoe",
        "hunyuan_v1_moe",
        "flex_olmo",
        "granitemoe",
        "granitemoehybrid",
        "longcat_flash",
        "afmoe",
        "mimo_v2_flash",
        "step3p7",
        "kimi_linear",
        "llama4",
        "llama4_text",
        "nemotron_h",
    ]
)
