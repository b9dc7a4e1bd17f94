"""How a family's modules hold all experts of a layer in one tensor."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedLayout:
    """Of `gate_up_proj` and `down_proj`.

    is_turned: they are [experts, in, out], as in gpt-oss and Llama-4, not [experts, out, in]. is_interleaved:
    gates and ups take turns along `out`, as in gpt-oss; else all gates come first. turns_on_load: whether
    transformers also takes checkpoints that hold them the other way round.
    """

    is_turned: bool = False
    is_interleaved: bool = False
    turns_on_load: bool = False


def find_layout(experts: Any, model_type: str) -> FusedLayout:
    """Return what transformers' module of a layer's experts, and the family's conversions on loading, say."""
    return FusedLayout(
        is_turned=experts.gate_up_proj.shape[1] == experts.down_proj.shape[2],
        is_interleaved=not getattr(experts, "is_concatenated", True),
        turns_on_load=_turns_on_load(model_type),
    )


def _turns_on_load(model_type: str) -> bool:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    conversions = get_checkpoint_conversion_mapping(model_type) or []
    return any(
        conversion.target_patterns[0].endswith("experts.gate_up_proj")
        and any(type(step).__name__ == "Transpose" for step in getattr(conversion, "operations", ()))
        for conversion in conversions
    )
