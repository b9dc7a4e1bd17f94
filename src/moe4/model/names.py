"""What a checkpoint calls the tensors of a model, beside what transformers' modules are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["gate", "up", "down"]
PARTS: tuple[Part, ...] = ("gate", "up", "down")
"""The projections that an expert may have, in their order; `ExpertShape.parts` are those that it has."""
MODULE_LAYERS = "model.layers."
SIDE_BY_SIDE: dict[Part, str] = {part: f"{part}_proj" for part in PARTS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """A checkpoint's names for what is not in a layer, and prefixes of those that are."""

    layers: str
    """Prefix of the decoder layers' tensors, before a layer's number."""
    embedding: str
    head: str
    """The head's weight, also where it is tied to the embeddings."""
    head_bias: str | None = None
    ending: Mapping[str, tuple[int, ...]]
    """What follows the last layer beside the head's weight, such as a norm: names and shapes."""
    module_layers: str = MODULE_LAYERS
    """What transformers' own modules have for `layers`."""
    text_prefix: str = ""
    """Of every tensor of the text model, if the file holds it as one of several."""
    others: frozenset[str] = frozenset()
    """The tensors of the other models of the checkpoint, such as a vision tower."""

    def is_of_another_model(self, name: str) -> bool:
        """Say whether a tensor belongs to a model beside the text model."""
        return name in self.others or (bool(self.text_prefix) and name.startswith(TOWERS))


TOWERS = ("vision_tower.", "mm_projector.")
"""What a model of several parts has beside its text model, where only that is built."""
