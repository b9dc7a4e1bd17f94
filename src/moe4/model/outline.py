"""What a model's layers are made of and are called, without torch.

`SketchedNetwork` finds it from the config alone; `architecture.Network` from transformers' own modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moe4.config import ModelConfig
from moe4.errors import UnsupportedModelError
from moe4.model.inventory import LAYOUTS, list_tensors
from moe4.model.layouts import FusedLayout
from moe4.model.names import MODULE_LAYERS, PARTS, SIDE_BY_SIDE, Names, Part


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertShape:
    """The routed experts of one layer."""

    num_experts: int
    hidden_size: int
    width: int
    num_identities: int = 0
    """Experts numbered past the last one, which give their input back."""
    own_inputs: int = 0
    """Experts of a token, where the router scales an input for each; 0 where all of them get the same."""
    prefix: str
    """Of the experts' names in the checkpoint, such as `model.layers.3.mlp.experts`."""
    module: str = "mlp.experts"
    """Where transformers has them in the layer."""
    leaves: dict[Part, str] = field(default_factory=lambda: SIDE_BY_SIDE)
    """What the checkpoint calls an expert's weights; its keys are the weights that it has, in their order."""
    fused: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    """Tensors of all experts that a checkpoint may hold instead: names and what lies in each."""
    layout: FusedLayout = field(default_factory=FusedLayout)
    """How transformers' module holds all of them."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The projections of an expert, in their order: gate, up and down, or up and down alone."""
        return tuple(self.leaves)

    @property
    def first_parts(self) -> tuple[Part, ...]:
        """Those of them that get the expert's input, and so share a Hessian: all but down."""
        return tuple(part for part in self.leaves if part != "down")

    @property
    def inputs_per_token(self) -> int:
        """How many inputs [hidden] the experts get of each token."""
        return self.own_inputs or 1

    @property
    def num_weights(self) -> int:
        """The weights of one expert."""
        return len(self.leaves) * self.hidden_size * self.width

    def weight_name(self, expert: int, part: Part) -> str:
        """Return the checkpoint's name of one expert's weight."""
        return f"{self.prefix}.{expert}.{self.leaves[part]}.weight"

    def weight_names(self, expert: int) -> list[str]:
        """Return the checkpoint's names of one expert's weights, in the order of its parts."""
        return [self.weight_name(expert, part) for part in self.leaves]

    def weight_shape(self, part: Part) -> tuple[int, int]:
        """Return [out, in] of a projection."""
        return (self.hidden_size, self.width) if part == "down" else (self.width, self.hidden_size)


class Outline(ABC):
    """The parts of a model and their names in the checkpoint.

    config: the text model's. ties_head: whether the embeddings are the head. ignored: regular expressions of
    what transformers passes over when it loads a checkpoint. item_bytes: of a number in the dtype it is
    computed in. experts: each layer's, or None for a dense layer.
    """

    config: Any
    ties_head: bool
    ignored: tuple[str, ...] = ()
    names: Names
    num_layers: int
    item_bytes: int
    experts: list[ExpertShape | None]
    integers: frozenset[str] = frozenset()
    """Tensors of whole numbers: tables of a layer's experts by token id."""

    @property
    def state_width(self) -> int:
        """Values of a token between layers."""
        return int(self.config.hidden_size)

    @property
    def embedding_name(self) -> str:
        """The checkpoint's name of the token embeddings [vocabulary, hidden]."""
        return self.names.embedding

    def layer_of(self, name: str) -> int | None:
        """Return the decoder layer a tensor belongs to by its name; may lie past the layers that are run."""
        prefix = self.names.layers
        number = name.removeprefix(prefix).split(".")[0]
        return int(number) if name.startswith(prefix) and number.isdigit() else None

    def layer_prefix(self, layer: int) -> str:
        """Return the prefix of a layer's tensors in the checkpoint."""
        return f"{self.names.layers}{layer}."

    def layer_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the checkpoint's names of a layer's tensors other than routed experts, with their shapes."""
        return {stored: shape for stored, _, shape in self._layer_tensors(layer)}

    def module_name(self, layer: int, local: str) -> str:
        """Return what transformers' own module calls a tensor of a layer."""
        return f"{self.names.text_prefix}{self.names.module_layers}{layer}.{local}"

    def module_names(self, layer: int) -> dict[str, str]:
        """Return the checkpoint's names of a layer's tensors other than routed experts, by the module's."""
        return {self.module_name(layer, local): stored for stored, local, _ in self._layer_tensors(layer)}

    @property
    def head_name(self) -> str:
        """The checkpoint's name of the head's weight [vocabulary, hidden]."""
        return self.embedding_name if self.ties_head else self.names.head

    @abstractmethod
    def _layer_tensors(self, layer: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield (name in the checkpoint, name in the module, shape) of all but routed experts."""


class SketchedNetwork(Outline):
    """A model as its config alone describes it. Tests hold it to what transformers builds."""

    def __init__(self, config: ModelConfig, item_bytes: int) -> None:
        """Raises UnsupportedModelError for a config that lacks something, or that only transformers reads."""
        config.require_complete()
        if not config.is_checked:
            raise UnsupportedModelError(
                f"{config.where}: a {config.network_type} model is built by transformers: "
                "pip install 'moe4[quantize]'"
            )
        family, layout = config.family, LAYOUTS[config.family.model_type]
        leaves = {part: layout.leaves[place] for place, part in enumerate(PARTS)}
        prefix = config.text_prefix
        self.config, self.item_bytes, self.ties_head = family, item_bytes, family.tie_word_embeddings
        self.names = Names(
            layers=f"{prefix}{MODULE_LAYERS}",
            embedding=f"{prefix}model.embed_tokens.weight",
            head=f"{prefix}lm_head.weight",
            ending={f"{prefix}model.norm.weight": (family.hidden_size,)},
            text_prefix=prefix,
        )
        self.num_layers = family.num_hidden_layers
        self.experts = [
            ExpertShape(
                num_experts=family.num_routed_experts,
                hidden_size=family.hidden_size,
                width=family.expert_width,
                prefix=f"{prefix}{MODULE_LAYERS}{layer}.{layout.module}.experts",
                leaves=leaves,
                fused={
                    self.module_name(layer, "mlp.experts.gate_up_proj"): ("gate", "up"),
                    self.module_name(layer, "mlp.experts.down_proj"): ("down",),
                },
            )
            if has_experts
            else None
            for layer, has_experts in enumerate(family.expert_layers)
        ]
        self._tensors: list[list[tuple[str, str, tuple[int, ...]]]] = [[] for _ in range(self.num_layers)]
        for entry in list_tensors(family):
            name = config.text_prefix + entry.name
            number = self.layer_of(name)
            if number is not None and not entry.is_routed_expert:
                local = name.removeprefix(self.layer_prefix(number))
                local = f".{local}".replace(f".{layout.module}.", ".mlp.").removeprefix(".")
                self._tensors[number].append((name, local, entry.shape))

    def _layer_tensors(self, layer: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield from self._tensors[layer]
