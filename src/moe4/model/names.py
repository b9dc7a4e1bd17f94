"""What a checkpoint calls the tensors of a model, beside what transformers' modules are called.

The differences are transformers' own: the conversions it loads the family's checkpoints with.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from moe4.errors import UnsupportedModelError

Part = Literal["gate", "up", "down"]
PARTS: tuple[Part, ...] = ("gate", "up", "down")


_MERGED, _GATES_THEN_UPS = ("MergeModulelist", 0), ("Concatenate", 1)
STACKED: dict[Part, list[tuple[str, int]]] = {
    "gate": [_MERGED, _GATES_THEN_UPS],
    "up": [_MERGED, _GATES_THEN_UPS],
    "down": [_MERGED],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """From modules to a checkpoint's tensors."""

    text_prefix: str = ""
    """Of every tensor of the text model, if it is one of several."""
    renamings: tuple[tuple[str, str], ...] = ()
    """(part of a module's name, part of the checkpoint's name)."""
    expert_leaves: dict[Part, str] = field(default_factory=lambda: {part: f"{part}_proj" for part in PARTS})
    """What an expert's three weights are called, such as w1, w3 and w2."""
    stacks_experts: bool = False
    """Whether transformers' modules hold experts as [experts, out, in], ups after gates along `out`."""

    @property
    def decoder(self) -> str:
        """Return the prefix of the decoder's tensors."""
        return f"{self.text_prefix}model."

    def in_checkpoint(self, name: str) -> str:
        """Return the checkpoint's name of the text model's `name`."""
        for module_part, stored_part in self.renamings:
            name = name.replace(module_part, stored_part)
        return self.text_prefix + name


def find_names(model_type: str, transformers_type: str) -> Names:
    """Return the names of a family. Raises UnsupportedModelError if its experts are not one tensor each."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    renamings: list[tuple[str, str]] = []
    leaves: dict[Part, str] = {}
    stacked: set[Part] = set()
    for conversion in get_checkpoint_conversion_mapping(transformers_type) or []:
        sources, targets = list(conversion.source_patterns), list(conversion.target_patterns)
        parts: tuple[Part, ...] = ()
        if targets[0].endswith("experts.gate_up_proj") and len(sources) == 2:
            parts = ("gate", "up")
        elif targets[0].endswith("experts.down_proj") and len(sources) == 1:
            parts = ("down",)
        elif type(conversion).__name__ == "WeightRenaming":
            renamings.append((targets[0], sources[0]))
        for part, source in zip(parts, sources, strict=False):
            before, _, leaf = source.partition("experts.*.")
            if not leaf.endswith(".weight") or any(letter in before for letter in "\\^$("):
                raise UnsupportedModelError(f"the experts of {model_type} are stored as {source}")
            leaves[part] = leaf.removesuffix(".weight")
            if _operations(conversion) == STACKED[part]:
                stacked.add(part)
    if set(leaves) != set(PARTS):
        raise UnsupportedModelError(
            f"transformers does not store the experts of {model_type} as one tensor each"
        )
    return Names(renamings=tuple(renamings), expert_leaves=leaves, stacks_experts=stacked == set(PARTS))


def _operations(conversion: Any) -> list[tuple[str, int]]:
    """Return what transformers does to experts' weights when it loads them: operations and their axes."""
    return [(type(step).__name__, getattr(step, "dim", -1)) for step in conversion.operations]
