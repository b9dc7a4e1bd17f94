"""What a checkpoint calls the tensors of a model, beside what transformers' modules are called.

The differences are transformers' own: the conversions it loads the family's checkpoints with.
"""

from dataclasses import dataclass, field
from typing import Literal

from moe4.errors import UnsupportedModelError

Part = Literal["gate", "up", "down"]
PARTS: tuple[Part, ...] = ("gate", "up", "down")


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """From modules to a checkpoint's tensors."""

    text_prefix: str = ""
    """Of every tensor of the text model, if it is one of several."""
    renamings: tuple[tuple[str, str], ...] = ()
    """(part of a module's name, part of the checkpoint's name)."""
    expert_leaves: dict[Part, str] = field(default_factory=lambda: {part: f"{part}_proj" for part in PARTS})
    """What an expert's three weights are called, such as w1, w3 and w2."""

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
    if set(leaves) != set(PARTS):
        raise UnsupportedModelError(
            f"transformers does not store the experts of {model_type} as one tensor each"
        )
    return Names(renamings=tuple(renamings), expert_leaves=leaves)
