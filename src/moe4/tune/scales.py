"""The scales of a release's routed experts, what they are multiplied by, and how that is learned."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moe4.checkpoint.source import Checkpoint
from moe4.errors import EvaluationError
from moe4.model.architecture import Network
from moe4.model.names import Part
from moe4.model.outline import ExpertShape

BETAS = (0.9, 0.99)
EPSILON = 1e-8
STATE = ("change", "mean", "square")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartScales:
    """The scales of one part (gate, up or down) of all experts of a layer.

    All tensors are float32 [experts, rows, groups], on one device.

    stored_names: each expert's. base: what the release has. change: the scale is base * (1 + change), rounded
    to `dtype`. mean, square: Adam's running averages of the gradient and of its square.
    """

    stored_names: tuple[str, ...]
    dtype: torch.dtype
    base: Tensor
    change: Tensor
    mean: Tensor
    square: Tensor
    leaves: list[Tensor] = field(default_factory=list)
    """Each expert's `change` [rows, groups], in the same memory, as what a gradient is taken to."""

    def ratio(self, expert: int | slice) -> Tensor:
        """Return the rounded scales over the release's, of one expert [rows, groups] or of several.

        The gradient, of an expert's leaf or of `change`, is that without rounding.
        """
        base = self.base[expert]
        change = self.leaves[expert] if isinstance(expert, int) else self.change[expert]
        scale = base * (1 + change)
        rounded = scale + (scale.detach().to(self.dtype).float() - scale.detach())
        is_zero = base == 0
        return torch.where(is_zero, 1.0, rounded / base.masked_fill(is_zero, 1.0))

    def rounded(self, expert: int) -> Tensor:
        """Return an expert's scales as they are stored, [rows, groups]."""
        return (self.base[expert] * (1 + self.change.detach()[expert])).to(self.dtype)

    def watch(self) -> None:
        """Let gradients be summed up in one tensor, `change.grad`, from zero."""
        self.change.grad = torch.zeros_like(self.base)
        for leaf, gradient in zip(self.leaves, self.change.grad, strict=True):
            leaf.grad = gradient

    def forget(self) -> None:
        """Give the gradients' memory back."""
        for leaf in (self.change, *self.leaves):
            leaf.grad = None

    def step(self, number: int, learning_rate: float) -> None:
        """Take Adam's step number `number`, from 1. A scale that no token reached has a gradient of zero."""
        first, second = BETAS
        gradient = self.change.grad
        assert gradient is not None
        with torch.no_grad():
            self.mean.mul_(first).add_(gradient, alpha=1 - first)
            self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (self.square / (1 - second**number)).sqrt_().add_(EPSILON)
            self.change.addcdiv_(self.mean, size, value=-learning_rate / (1 - first**number))


class TunedScales:
    """The scales of every routed expert. of_layer: by part; empty for a dense layer."""

    def __init__(self, weights: Checkpoint, network: Network, device: torch.device) -> None:
        """Read those of a release. Raises EvaluationError if an expert's weight is not codes with scales."""
        self.of_layer: list[dict[Part, PartScales]] = [
            {part: _read(weights, shape, part, device) for part in shape.parts} if shape else {}
            for shape in network.experts
        ]

    @property
    def num_scales(self) -> int:
        return sum(scales.base.numel() for _, scales in self._all())

    def rounded(self) -> Iterator[tuple[str, PartScales, int]]:
        """Yield (stored name, scales of the part, the expert's number) of every tensor of scales."""
        for _, scales in self._all():
            for expert, name in enumerate(scales.stored_names):
                yield name, scales, expert

    def watch(self, layer: int) -> None:
        """Begin to sum up the gradients of a layer's scales."""
        for scales in self.of_layer[layer].values():
            scales.watch()

    def step(self, layer: int, number: int, learning_rate: float) -> None:
        """Take Adam's step number `number`, from 1, of a layer's scales, and forget the gradients.

        Kingma and Ba, arXiv:1412.6980, algorithm 1.
        """
        for scales in self.of_layer[layer].values():
            scales.step(number, learning_rate)
            scales.forget()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, float32 [experts, rows, groups]) of all that a run needs to go on."""
        for name, scales in self._all():
            for what in STATE:
                yield f"{name}.{what}", getattr(scales, what).detach()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        with torch.no_grad():
            for name, tensor in self.state():
                tensor.copy_(state[name])

    def _all(self) -> Iterator[tuple[str, PartScales]]:
        for layer, parts in enumerate(self.of_layer):
            for part, scales in parts.items():
                yield f"{layer}.{part}", scales


def learning_rate(peak: float, done: int, steps: int) -> float:
    """Return the rate of the step after `done` of them: half a cosine, from the peak to zero."""
    return peak * 0.5 * (1 + math.cos(math.pi * done / steps))


def _read(weights: Checkpoint, shape: ExpertShape, part: Part, device: torch.device) -> PartScales:
    names, read = list[str](), list[Tensor]()
    for expert in range(shape.num_experts):
        name = shape.weight_name(expert, part)
        encoding = weights.encoding(name)
        if encoding is None or "scales" not in encoding.roles:
            raise EvaluationError(f"{name} is not stored in groups of codes: there is no scale to tune")
        names.append(encoding.roles["scales"].spec.name)
        read.append(weights.read_parts(name)[names[-1]])
    base = torch.stack([tensor.float() for tensor in read]).to(device)
    change = torch.zeros_like(base)
    leaves = [one.requires_grad_() for one in change.detach()]
    return PartScales(
        stored_names=tuple(names),
        dtype=read[0].dtype,
        base=base,
        change=change.requires_grad_(),
        mean=torch.zeros_like(base),
        square=torch.zeros_like(base),
        leaves=leaves,
    )
