"""A release's forward and backward pass, one decoder layer at a time, with gradients for its scales.

In memory are the hidden states before every layer of one step's text, a layer without its experts, and an
expert. Layers and experts that there is room for stay.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe4.calibration.activations import Batch, ResidentActivations, make_batches
from moe4.checkpoint.source import Checkpoint
from moe4.errors import EvaluationError
from moe4.forward.layer import LayerForward
from moe4.forward.weights import gather_rows
from moe4.machine.at_once import BATCH_TOKENS
from moe4.model.architecture import Network
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.tune.experts import TunedExperts
from moe4.tune.scales import TunedScales

LOGITS = 1 << 22  # values of log-probabilities at a time

LogProbabilities = Callable[[Tensor], Tensor]
"""Gives log-probabilities, float32 [rows, vocabulary], of rows of the step's tokens."""


class Text:
    """A step's sequences: their tokens one after another, int64 [tokens], and the batches they run in."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
        self.batches = list(make_batches([len(sequence) for sequence in sequences], BATCH_TOKENS))


class Student:
    """The release, whose experts' scales are those of `scales`. `network` computes in float32.

    keep_bytes: for weights that stay in memory. padded_bytes: as `TunedExperts` takes it.
    """

    def __init__(
        self,
        weights: Checkpoint,
        network: Network,
        scales: TunedScales,
        device: torch.device,
        keep_bytes: int,
        padded_bytes: int,
    ) -> None:
        self.network, self.scales = network, scales
        self._stored, self._device = weights, device
        self._room, self._padded_bytes = keep_bytes, padded_bytes
        self._weights: dict[str, Tensor] = {}
        self._is_full = False  # a weight had no room
        self._layers: dict[int, tuple[LayerForward, TunedExperts | None]] = {}
        self._ending: Callable[[Tensor], Tensor] | None = None
        self._first = next(layer for layer, found in enumerate(scales.of_layer) if found)

    def forward(self, text: Text, on_layer: Callable[[], None]) -> list[Tensor]:
        """Return the states before every layer and after the last one, float32 [tokens, state_width] each."""
        embeddings = gather_rows(self._stored, self.network.embedding_name, text.tokens)
        states = [self.network.begin(embeddings).to(self._device, torch.float32)]
        for layer in range(self.network.num_layers):
            output = torch.empty_like(states[-1])
            for batch in text.batches:
                rows = batch.token_rows.to(self._device)
                with torch.no_grad():
                    output[rows] = self._run(layer, text, batch, states[-1][rows])
            states.append(output)
            on_layer()
        return states

    def backward(
        self, text: Text, states: list[Tensor], gradient: Tensor, step: Callable[[int], None]
    ) -> None:
        """Go back from the loss's gradient to the last states, and take the states apart on the way.

        `step` hears of each layer whose scales have their gradients.
        """
        for layer in range(self.network.num_layers - 1, self._first - 1, -1):
            states.pop()
            before = torch.empty_like(gradient)
            self.scales.watch(layer)
            for batch in text.batches:
                rows = batch.token_rows.to(self._device)
                inputs = states[-1][rows].requires_grad_()
                with torch.enable_grad():
                    output = self._run(layer, text, batch, inputs)
                torch.autograd.backward(output, gradient[rows])
                assert inputs.grad is not None
                before[rows] = inputs.grad
            gradient = before
            if self.scales.of_layer[layer]:
                step(layer)

    def divergence(
        self, last: Tensor, source: LogProbabilities, *, with_gradient: bool
    ) -> tuple[float, Tensor]:
        """Return KL(source || release) in nats, summed over tokens, and its gradient over the mean's.

        last: states after the last layer, [tokens, state_width]; the gradient has its shape, of the mean over
        tokens. Raises EvaluationError on NaN or Inf.
        """
        weight, bias = self._head()
        ending, total, gradient = self._end(), 0.0, torch.zeros_like(last)
        rows_at_once = max(1, LOGITS // len(weight))
        for rows in torch.split(torch.arange(len(last), device=last.device), rows_at_once):
            expected = source(rows).clone()
            states = last[rows].requires_grad_(with_gradient)
            with torch.set_grad_enabled(with_gradient):
                logits = ending(states) @ weight.T
                logits = self.network.finish_logits(logits if bias is None else logits + bias)
                found = torch.log_softmax(logits.float(), dim=-1)
                loss = (expected.exp() * (expected - found)).sum()
            if not torch.isfinite(loss):
                raise EvaluationError(
                    "the release's answers hold NaN or Inf; a smaller learning rate may help"
                )
            total += float(loss.detach())
            if with_gradient:
                torch.autograd.backward(loss / len(last))
                assert states.grad is not None
                gradient[rows] = states.grad
        return total, gradient

    def _run(self, layer: int, text: Text, batch: Batch, states: Tensor) -> Tensor:
        if layer not in self._layers:
            if self._is_full:
                self._layers.clear()  # one layer at a time; weights that were kept stay in `_weights`
            self._layers[layer] = self._build(layer)
        forward, experts = self._layers[layer]
        return forward.through(batch, states, text.tokens, experts.sum if experts else None)

    def _load(self, name: str) -> Tensor:
        """Return a weight as the release has it, float32 on the device; it stays if there is room."""
        kept = self._weights.get(name)
        if kept is not None:
            return kept
        tensor = self._read(name)
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            self._weights[name] = tensor
        else:
            self._is_full = True
        return tensor

    def _build(self, layer: int) -> tuple[LayerForward, TunedExperts | None]:
        module = self.network.build_layer(layer, self._load, self._device)
        no_states = ResidentActivations(torch.empty(0, self.network.state_width, dtype=torch.float32))
        no_tokens = torch.empty(0, dtype=torch.int64)  # each text has its own
        forward = LayerForward(self.network, layer, module, no_states, no_tokens, self._device)
        shape = self.network.experts[layer]
        if shape is None:
            return forward, None
        math = self.network.expert_math(layer, self._load, self._device)
        stacks, scales = self._stack(shape), self.scales.of_layer[layer]
        return forward, TunedExperts(shape, math, scales, stacks, self._read, self._padded_bytes)

    def _stack(self, shape: ExpertShape) -> dict[Part, Tensor] | None:
        """Return a layer's experts as the release has them, float32 [experts, out, in]; None without room."""
        num_bytes = 4 * shape.num_experts * shape.num_weights
        if num_bytes > self._room:
            self._is_full = True
            return None
        self._room -= num_bytes
        stacks = dict[Part, Tensor]()
        for part in shape.parts:
            stack = torch.empty(
                shape.num_experts, *shape.weight_shape(part), device=self._device, dtype=torch.float32
            )
            for expert in range(shape.num_experts):
                stack[expert] = self._read(shape.weight_name(expert, part))
            stacks[part] = stack
        return stacks

    def _read(self, name: str) -> Tensor:
        """Return a weight as the release has it, float32 on the device; whole numbers as they are."""
        tensor = self._stored.load(name).to(self._device)
        return tensor.float() if tensor.is_floating_point() else tensor

    def _head(self) -> tuple[Tensor, Tensor | None]:
        name = self.network.names.head_bias
        return self._load(self.network.head_name), None if name is None else self._load(name)

    def _end(self) -> Callable[[Tensor], Tensor]:
        if self._ending is None:
            self._ending = self.network.build_ending(self._load, self._device)
        return self._ending
