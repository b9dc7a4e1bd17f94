"""The faults that are planted: each changes weights as they are read; no file of the release is touched."""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.forward.weights import Weights
from moe4.gptq.grid import absmax_scales, round_to_grid
from moe4.model.architecture import Network
from moe4.model.outline import ExpertShape

ROUTER_BIAS = re.compile(r"e_score_correction_bias$|\.(?:gate|router)\.bias$")
# By how much a scale is too large. A bf16 scale has no smaller step than 0.4 %.
EXCESSES = (0.005, 0.007, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0)
USUAL_EXCESS = 0.05
COUNTS = (1, 2, 3, 5, 7)  # and the same times 10, 100, ...

Place = tuple[int, int]
"""A layer and an expert of it."""


class BothExperts:
    """Both models' experts, float32: the weights of a place in the order of its parts, down last."""

    def __init__(self, source: Weights, release: Weights, shapes: Sequence[ExpertShape | None]) -> None:
        self._source, self._release, self._shapes = source, release, shapes

    def original(self, place: Place) -> list[Tensor]:
        """Return the source's weights of an expert."""
        return self._load(self._source, place)

    def released(self, place: Place) -> list[Tensor]:
        """Return the release's weights of an expert."""
        return self._load(self._release, place)

    def _load(self, weights: Weights, place: Place) -> list[Tensor]:
        layer, expert = place
        shape = self._shapes[layer]
        assert shape is not None
        return [weights.load(name).float() for name in shape.weight_names(expert)]


class ExpertChange(Protocol):
    """What becomes of one expert; equal changes do the same."""

    def apply(self, place: Place, reader: BothExperts) -> list[Tensor]:
        """Return the expert's weights with the fault, float32, in the order of its parts."""
        ...


@dataclass(frozen=True, slots=True)
class Scaled:
    """The scales of its down projection are too large by a factor."""

    factor: float

    def apply(self, place: Place, reader: BothExperts) -> list[Tensor]:
        """Return the weights as they are, but for the down projection."""
        *first, down = reader.released(place)
        return [*first, down * self.factor]


@dataclass(frozen=True, slots=True)
class Rounded:
    """It is rounded to nearest, each group's largest magnitude over 7.5 its scale."""

    group_size: int

    def apply(self, place: Place, reader: BothExperts) -> list[Tensor]:
        """Return the source's weights, rounded."""
        return [self._round(weight) for weight in reader.original(place)]

    def _round(self, weight: Tensor) -> Tensor:
        scales = absmax_scales(weight, self.group_size)
        return dequantize(round_to_grid(weight, scales), scales)


@dataclass(frozen=True, slots=True)
class Replaced:
    """It has the weights of another one."""

    other: Place

    def apply(self, place: Place, reader: BothExperts) -> list[Tensor]:
        """Return the other one's weights."""
        return reader.released(self.other)


@dataclass(frozen=True, slots=True)
class Lost:
    """It gives zero."""

    def apply(self, place: Place, reader: BothExperts) -> list[Tensor]:
        """Return zeros."""
        return [torch.zeros_like(weight) for weight in reader.released(place)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """What goes wrong; without arguments, nothing.

    dropped: tensors beside the routed experts that are read as zero. first_layer: the layer before which
    everything is as it is without the fault.
    """

    experts: Mapping[Place, ExpertChange] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    first_layer: int = 0

    @property
    def only_experts(self) -> bool:
        """Whether attention and routing of its first layer are as they are without the fault."""
        return not self.dropped


def damage_experts(changes: Mapping[Place, ExpertChange]) -> Damage:
    """Return the damage of changed experts, which begins at the first of them."""
    return Damage(experts=changes, first_layer=min(layer for layer, _ in changes))


class FaultyWeights:
    """A release's weights beside its routed experts, as a faulty release would give them."""

    def __init__(self, weights: Weights, dropped: frozenset[str]) -> None:
        self.config, self._weights, self._dropped = weights.config, weights, dropped
        self.num_changed = 0
        """Tensors that the fault changed when they were read."""

    def load(self, name: str) -> Tensor:
        """Return a weight that belongs to no routed expert."""
        tensor = self._weights.load(name)
        if name not in self._dropped:
            return tensor
        self.num_changed += bool(tensor.any())
        return torch.zeros_like(tensor)

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix, some whole rows at a time."""
        yield from self._weights.iterate_rows(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultKind:
    """A kind of fault. sizes: those it can have, rising; empty if it has none. usual: the one to show."""

    name: str
    title: str
    make: Callable[[float], Damage]
    unit: Literal["factor", "experts"] | None = None
    sizes: tuple[float, ...] = ()
    usual: float = 0.0


def list_faults(network: Network, group_size: int, tokens: dict[Place, int]) -> list[FaultKind]:
    """Return the faults that this model can have.

    tokens: how many of the text go to each expert. What concerns one expert concerns that of the middle layer
    with experts which is reached by a median number of tokens: not the loudest of them, not one that no token
    of the text reaches.
    """
    layers = sorted({layer for layer, _ in tokens})
    layer = layers[len(layers) // 2]
    order = sorted((place for place in tokens if place[0] == layer), key=lambda place: (tokens[place], place))
    middle = len(order) // 2
    one, other = order[middle], order[middle - 1]
    places = sorted(tokens)
    random.Random(0).shuffle(places)
    places.sort(key=lambda place: place != one)
    return [
        FaultKind(
            name="scaled_expert",
            title="scales of one expert's down projection too large",
            make=lambda excess: damage_experts({one: Scaled(1 + excess)}),
            unit="factor",
            sizes=EXCESSES,
            usual=USUAL_EXCESS,
        ),
        FaultKind(
            name="scaled_experts",
            title="scales of every expert's down projection too large",
            make=lambda excess: damage_experts(dict.fromkeys(places, Scaled(1 + excess))),
            unit="factor",
            sizes=EXCESSES,
            usual=USUAL_EXCESS,
        ),
        FaultKind(
            name="rounded_experts",
            title="experts rounded to nearest",
            make=lambda count: damage_experts(dict.fromkeys(places[: int(count)], Rounded(group_size))),
            unit="experts",
            sizes=tuple(_counts(len(places))),
            usual=1,
        ),
        FaultKind(
            name="swapped_experts",
            title="two experts of a layer swapped",
            make=lambda _: damage_experts({one: Replaced(other), other: Replaced(one)}),
        ),
        FaultKind(
            name="lost_expert",
            title="one expert gives zero",
            make=lambda _: damage_experts({one: Lost()}),
        ),
        *_router_faults(network, layer),
    ]


def _counts(most: int) -> Iterator[float]:
    """Yield the numbers of experts that are tried, rising, the last of them all."""
    power = 1
    while power <= most:
        yield from (float(count * power) for count in COUNTS if count * power < most)
        power *= 10
    yield float(most)


def _router_faults(network: Network, layer: int) -> Iterator[FaultKind]:
    """Yield the loss of the router's bias in one layer, and in all, where the model has one."""
    found = {
        number: {name for name in network.layer_tensors(number) if ROUTER_BIAS.search(name)}
        for number in range(network.num_layers)
    }
    if found[layer]:
        yield FaultKind(
            name="router_bias",
            title="the router's bias dropped in one layer",
            make=lambda _: Damage(dropped=frozenset(found[layer]), first_layer=layer),
        )
    every = frozenset(set().union(*found.values()))
    if every:
        first = min(number for number, names in found.items() if names)
        yield FaultKind(
            name="router_biases",
            title="the router's bias dropped in every layer",
            make=lambda _: Damage(dropped=every, first_layer=first),
        )
