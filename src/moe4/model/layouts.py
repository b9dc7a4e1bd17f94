"""How a family's modules hold all experts of a layer in one tensor."""

from dataclasses import dataclass
from typing import Any

from moe4.model.names import Part

FIRST_PROJECTIONS: dict[str, tuple[Part, ...]] = {"gate_up_proj": ("gate", "up"), "up_proj": ("up",)}
"""What transformers' modules call the tensor of all experts' projections of their input; what lies in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedLayout:
    """Of `gate_up_proj`, or `up_proj` where experts have no gate, and `down_proj`.

    is_turned: they are [experts, in, out], as in gpt-oss and Llama-4, not [experts, out, in]. is_interleaved:
    gates and ups take turns along `out`, as in gpt-oss; else all gates come first. turns_on_load: whether
    transformers also takes checkpoints that hold them the other way round.
    """

    is_turned: bool = False
    is_interleaved: bool = False
    turns_on_load: bool = False


def find_layout(experts: Any, model_type: str) -> FusedLayout:
    """Return what transformers' module of a layer's experts, and the family's conversions on loading, say."""
    first = find_first_projection(experts)
    assert first is not None
    whole = getattr(experts, first)
    by_shape = len(FIRST_PROJECTIONS[first]) > 1 and whole.shape[1] == experts.down_proj.shape[2]
    return FusedLayout(
        is_turned=getattr(experts, "is_transposed", by_shape),
        is_interleaved=not getattr(experts, "is_concatenated", True),
        turns_on_load=_turns_on_load(model_type, first),
    )


def find_first_projection(module: Any) -> str | None:
    """Return the name in FIRST_PROJECTIONS that a module of routed experts has; None for another module."""
    held = {name: part for name, part in module.named_parameters(recurse=False) if part.ndim == 3}
    return next((name for name in FIRST_PROJECTIONS if {name, "down_proj"} <= held.keys()), None)


def _turns_on_load(model_type: str, first: str) -> bool:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    conversions = get_checkpoint_conversion_mapping(model_type) or []
    return any(
        conversion.target_patterns[0].endswith(f"experts.{first}")
        and any(type(step).__name__ == "Transpose" for step in getattr(conversion, "operations", ()))
        for conversion in conversions
    )
