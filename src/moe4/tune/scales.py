"""The scales of a release's routed experts, what they are multiplied by, and how that is learned."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moe4.checkpoint.source import Checkpoint
from moe4.errors import EvaluationError
from moe4.model.architecture import Network
from moe4.model.names import PARTS

BETAS = (0.9, 0.99)
EPSILON = 1e-8
STATE = ("change", "mean", "square")


@dataclass(frozen=True, slots=True)
class Scale:
    """One matrix's scales. All tensors are float32 [rows, groups], on one device, but for `dtype`.

    base: what the release has. change: the scale is base * (1 + change), rounded to `dtype`. mean, square:
    Adam's running averages of the gradient and of its square.
    """

    stored_name: str
    dtype: torch.dtype
    base: Tensor
    change: Tensor
    mean: Tensor
    square: Tensor

    def ratio(self) -> Tensor:
        """Return the rounded scale over the release's; its gradient is that without rounding."""
        scale = self.base * (1 + self.change)
        rounded = scale + (scale.detach().to(self.dtype).float() - scale.detach())
        is_zero = self.base == 0
        return torch.where(is_zero, 1.0, rounded / self.base.masked_fill(is_zero, 1.0))

    def rounded(self) -> Tensor:
        """Return the scale as it is stored."""
        return (self.base * (1 + self.change.detach())).to(self.dtype)


class TunedScales:
    """The scales of every routed expert, by the weight's name."""

    def __init__(self, weights: Checkpoint, network: Network, device: torch.device) -> None:
        """Read those of a release. Raises EvaluationError if an expert's weight is not codes with scales."""
        self.of_layer: list[dict[str, Scale]] = []
        for shape in network.experts:
            found: dict[str, Scale] = {}
            for expert in range(shape.num_experts if shape else 0):
                for part in PARTS:
                    assert shape is not None
                    name = shape.weight_name(expert, part)
                    found[name] = _read(weights, name, device)
            self.of_layer.append(found)
        self.by_name = {name: scale for layer in self.of_layer for name, scale in layer.items()}

    @property
    def num_scales(self) -> int:
        return sum(scale.base.numel() for scale in self.by_name.values())

    def step(self, layer: int, number: int, learning_rate: float) -> None:
        """Take Adam's step number `number`, from 1, of a layer's scales, and forget the gradients.

        Kingma and Ba, arXiv:1412.6980, algorithm 1. A scale that no token reached has a gradient of zero.
        """
        first, second = BETAS
        with torch.no_grad():
            for scale in self.of_layer[layer].values():
                gradient = scale.change.grad
                scale.mean.mul_(first)
                scale.square.mul_(second)
                if gradient is not None:
                    scale.mean.add_(gradient, alpha=1 - first)
                    scale.square.addcmul_(gradient, gradient, value=1 - second)
                size = (scale.square / (1 - second**number)).sqrt_().add_(EPSILON)
                scale.change.addcdiv_(scale.mean, size, value=-learning_rate / (1 - first**number))
                scale.change.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, float32 [rows, groups]) of all that a run needs to go on."""
        for name, scale in self.by_name.items():
            for field in STATE:
                yield f"{name}:{field}", getattr(scale, field).detach()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        with torch.no_grad():
            for name, tensor in self.state():
                tensor.copy_(state[name])


def learning_rate(peak: float, done: int, steps: int) -> float:
    """Return the rate of the step after `done` of them: half a cosine, from the peak to zero."""
    return peak * 0.5 * (1 + math.cos(math.pi * done / steps))


def _read(weights: Checkpoint, name: str, device: torch.device) -> Scale:
    encoding = weights.encoding(name)
    if encoding is None or "scales" not in encoding.roles:
        raise EvaluationError(f"{name} is not stored in groups of codes: there is no scale to tune")
    stored = encoding.roles["scales"].spec.name
    tensor = weights.read_parts(name)[stored]
    base = tensor.float().to(device)
    change = torch.zeros_like(base).requires_grad_()
    return Scale(stored, tensor.dtype, base, change, torch.zeros_like(base), torch.zeros_like(base))
