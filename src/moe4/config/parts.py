"""The objects inside a config.json, and the bounds of what it counts."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from moe4.schema import Foreign, Only

# No model comes near these bounds. A number past them is a slip or an attack, and would fail later and worse.
Layers = Annotated[int, Field(ge=1, le=1024)]
Experts = Annotated[int, Field(ge=1, le=1 << 16)]
Heads = Annotated[int, Field(ge=1, le=1 << 16)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]
"""Of hidden states, heads, ranks and inner layers."""
Count = Annotated[int, Field(ge=0, le=1 << 20)]
Vocabulary = Annotated[int, Field(ge=1, le=1 << 24)]
Number = Annotated[str, Field(pattern=r"^-?[0-9]{1,9}$")]
"""A whole number that is a key."""
NULL = "{} is null; give its number, or leave it out"
Tokens = Annotated[int, Field(ge=1, le=1 << 31)]
Share = Annotated[float, Field(ge=0, le=1)]


def _refuse_whole(value: Any) -> Any:
    if type(value) is int:
        raise PydanticCustomError(
            "only",
            "must be written with a decimal point, {found}.0: transformers refuses a whole number",
            {"found": value},
        )
    return value


Decimal = Annotated[float, BeforeValidator(_refuse_whole), Field(ge=0, le=1e6)]
Epsilon = Annotated[float, BeforeValidator(_refuse_whole), Field(ge=1e-20, le=1.0)]
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
DTYPES = ("bfloat16", "float16", "half", "float32", "float", "float64", "double", "float8_e4m3fn")
Dtype = Annotated[str | None, Only((*DTYPES, None), "it names the dtype of weights as torch does")]
Theta = Annotated[float, Field(gt=1.0, le=1e15)]


class Rope(Foreign):
    """`rope_scaling`, or `rope_parameters` as transformers 5 writes it."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    factor: Annotated[float, Field(ge=1, le=1e6)] | None = None
    original_max_position_embeddings: Tokens | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    attention_factor: Factor | None = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    mscale: Annotated[float, Field(ge=0, le=1e6)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0, le=1e6)] | None = None
    truncate: bool | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    rope_dim: None = None
    mrope_section: None = None
    full_attention: None = None
    sliding_attention: None = None

    @property
    def kind(self) -> str:
        """Return the kind of scaling; `default` for none."""
        return self.rope_type or self.type or "default"

    def faults(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        if self.rope_type and self.type and self.rope_type != self.type:
            yield f'rope_type is "{self.rope_type}", but type is "{self.type}"'
        if "rope_theta" in self.model_fields_set and self.rope_theta is None:
            yield NULL.format("rope_theta")
        if self.kind in ("yarn", "linear", "dynamic", "llama3") and self.factor is None:
            yield f"{self.kind} needs a factor"
        if self.kind == "yarn":
            fast, slow = self.beta_fast or 32, self.beta_slow or 1
            if fast < slow:
                yield f"beta_fast is {fast:g}, less than the {slow:g} of beta_slow"
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            if low is None or high is None or self.original_max_position_embeddings is None:
                yield "llama3 needs low_freq_factor, high_freq_factor and original_max_position_embeddings"
            elif high <= low:
                yield f"high_freq_factor is {high:g}, not more than the {low:g} of low_freq_factor"


class QuantizedWeights(Foreign):
    """How one group of compressed-tensors' modules is stored."""

    num_bits: Annotated[int, Field(ge=1, le=64)] | None = None
    type: str | None = None
    symmetric: bool | None = None
    strategy: str | None = None
    group_size: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    block_structure: Any = None
    actorder: str | bool | None = None


class QuantizedGroup(Foreign):
    """A group of compressed-tensors' modules."""

    targets: list[str] | None = None
    format: str | None = None
    weights: QuantizedWeights | None = None


class Quantization(Foreign):
    """`quantization_config`: what moe4 reads of it."""

    quant_method: str | None = None
    format: str | None = None
    scale_fmt: str | None = None
    expert_dtype: str | None = None
    weight_block_size: Annotated[list[Width], Field(min_length=2, max_length=2)] | None = None
    config_groups: dict[str, QuantizedGroup] | None = None
    ignore: list[str] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether it is that of a release in compressed-tensors' packed integers."""
        return self.format == "pack-quantized"

    @property
    def w4a16_group_size(self) -> int | None:
        """The codes that share a scale in a W4A16 release; None for other weights."""
        if self.is_packed:
            for group in (self.config_groups or {}).values():
                weights = group.weights
                if weights and weights.num_bits == 4 and (weights.group_size or 0) > 0:
                    return weights.group_size
        return None
