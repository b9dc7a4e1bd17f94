"""The faults that are planted: each changes weights as they are read; no file of the release is touched."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.forward.weights import Weights
from moe4.gptq.grid import absmax_scales, round_to_grid
from moe4.model.architecture import Network
from moe4.model.names import PARTS
from moe4.model.outline import ExpertShape

ROUTER_BIAS = re.compile(r"e_score_correction_bias$|\.(?:gate|router)\.bias$")
# By how much a scale is too large. A bf16 scale has no smaller step than 0.4 %.
EXCESSES = (0.005, 0.007, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0)
USUAL_EXCESS = 0.05
COUNTS = (1, 2, 3, 5, 7)  # and the same times 10, 100, ...

Place = tuple[int, int]
"""A layer and an expert of it."""


class BothExperts:
    """Both models' experts, float32: gate, up and down of a place."""

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
        return [weights.load(shape.weight_name(expert, part)).float() for part in PARTS]


class Damage:
    """What goes wrong; this one is none."""

    only_experts = True
    """Whether attention and routing of its first layer are as they are without the fault."""

    @property
    def first_layer(self) -> int:
        """The layer before which everything is as it is without the fault."""
        return 0

    def expert(self, _place: Place, _reader: BothExperts) -> list[Tensor] | None:
        """Return an expert's weights with the fault, float32; None where they have none."""
        return None

    def plain(self, _name: str, tensor: Tensor) -> Tensor:
        """Return a tensor that belongs to no routed expert, with the fault."""
        return tensor


@dataclass(frozen=True, slots=True)
class ScaledExperts(Damage):
    """Scales of down projections are too large by a factor."""

    places: frozenset[Place]
    factor: float

    @property
    def first_layer(self) -> int:
        """The first layer with such an expert."""
        return min(layer for layer, _ in self.places)

    def expert(self, place: Place, reader: BothExperts) -> list[Tensor] | None:
        """Return the weights as they are, but for the down projection."""
        if place not in self.places:
            return None
        gate, up, down = reader.released(place)
        return [gate, up, down * self.factor]


@dataclass(frozen=True, slots=True)
class RoundedExperts(Damage):
    """Experts are rounded to nearest, each group's largest magnitude over 7.5 its scale."""

    places: frozenset[Place]
    group_size: int

    @property
    def first_layer(self) -> int:
        """The first layer with such an expert."""
        return min(layer for layer, _ in self.places)

    def expert(self, place: Place, reader: BothExperts) -> list[Tensor] | None:
        """Return the source's weights, rounded."""
        if place not in self.places:
            return None
        return [self._round(weight) for weight in reader.original(place)]

    def _round(self, weight: Tensor) -> Tensor:
        scales = absmax_scales(weight, self.group_size)
        return dequantize(round_to_grid(weight, scales), scales)


@dataclass(frozen=True, slots=True)
class SwappedExperts(Damage):
    """Two experts of a layer have each other's weights."""

    one: Place
    other: Place

    @property
    def first_layer(self) -> int:
        """The layer of both."""
        return self.one[0]

    def expert(self, place: Place, reader: BothExperts) -> list[Tensor] | None:
        """Return the weights of the other of the two."""
        partner = {self.one: self.other, self.other: self.one}.get(place)
        return None if partner is None else reader.released(partner)


@dataclass(frozen=True, slots=True)
class LostExpert(Damage):
    """An expert gives zero."""

    place: Place

    @property
    def first_layer(self) -> int:
        """The expert's layer."""
        return self.place[0]

    def expert(self, place: Place, reader: BothExperts) -> list[Tensor] | None:
        """Return zeros."""
        return [torch.zeros_like(w) for w in reader.released(place)] if place == self.place else None


@dataclass(frozen=True, slots=True)
class DroppedTensors(Damage):
    """Tensors of a layer, or of it and later ones, are read as zero."""

    names: frozenset[str]
    layer: int

    only_experts = False

    @property
    def first_layer(self) -> int:
        """The first layer that lacks one."""
        return self.layer

    def plain(self, name: str, tensor: Tensor) -> Tensor:
        """Return zeros for those that are dropped."""
        return torch.zeros_like(tensor) if name in self.names else tensor


class FaultyWeights:
    """A release's weights as a faulty one would give them."""

    def __init__(self, weights: Weights, fault: Damage) -> None:
        self.config, self._weights, self.fault = weights.config, weights, fault
        self.num_changed = 0
        """Tensors of no routed expert that the fault changed when they were read."""

    def load(self, name: str) -> Tensor:
        """Return a weight that belongs to no routed expert."""
        tensor = self._weights.load(name)
        found = self.fault.plain(name, tensor)
        self.num_changed += found is not tensor and not torch.equal(found, tensor)
        return found

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
            make=lambda excess: ScaledExperts(frozenset({one}), 1 + excess),
            unit="factor",
            sizes=EXCESSES,
            usual=USUAL_EXCESS,
        ),
        FaultKind(
            name="scaled_experts",
            title="scales of every expert's down projection too large",
            make=lambda excess: ScaledExperts(frozenset(places), 1 + excess),
            unit="factor",
            sizes=EXCESSES,
            usual=USUAL_EXCESS,
        ),
        FaultKind(
            name="rounded_experts",
            title="experts rounded to nearest",
            make=lambda count: RoundedExperts(frozenset(places[: int(count)]), group_size),
            unit="experts",
            sizes=tuple(_counts(len(places))),
            usual=1,
        ),
        FaultKind(
            name="swapped_experts",
            title="two experts of a layer swapped",
            make=lambda _: SwappedExperts(one, other),
        ),
        FaultKind(name="lost_expert", title="one expert gives zero", make=lambda _: LostExpert(one)),
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
            make=lambda _: DroppedTensors(frozenset(found[layer]), layer),
        )
    every = frozenset(set().union(*found.values()))
    if every:
        first = min(number for number, names in found.items() if names)
        yield FaultKind(
            name="router_biases",
            title="the router's bias dropped in every layer",
            make=lambda _: DroppedTensors(every, first),
        )
