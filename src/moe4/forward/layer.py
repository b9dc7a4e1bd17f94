"""One decoder layer on a batch of hidden states, without its routed experts, and who is routed where."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from moe4.calibration.activations import Activations, Batch
from moe4.forward.device import forward_mode
from moe4.model.architecture import Network
from moe4.model.experts import Capture, set_capture
from moe4.model.outline import ExpertShape

SumExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Gives their sum, float32 [tokens, hidden], of ids and gates [tokens, top_k] and of inputs.

Inputs are [tokens * inputs_per_token, hidden].
"""

SAMPLE_TOKENS = 4
ADDS_WITHIN = 0.05  # of two outputs' difference: rounding in bfloat16 is far below


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """What a layer did with a batch's real tokens before its routed experts.

    output: [tokens, state_width] in the compute dtype, the experts' sum missing.
    inputs: of the experts, [tokens * inputs_per_token, hidden].
    ids: int64 [tokens, top_k]; gates: float32 [tokens, top_k].
    """

    output: Tensor
    inputs: Tensor
    ids: Tensor
    gates: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """Which tokens go to which expert.

    rows: int64 [tokens * top_k], token numbers, those of expert 0 first; in that order inputs: int64, numbers
    of the experts' inputs, and gates: float32. starts: where each expert's begin, and the end.
    """

    rows: Tensor
    inputs: Tensor
    gates: Tensor
    starts: list[int]

    def span(self, expert: int) -> slice:
        """Return where an expert's tokens stand."""
        return slice(self.starts[expert], self.starts[expert + 1])

    def of_expert(self, expert: int) -> tuple[Tensor, Tensor]:
        """Return (token numbers, gate weights) of one expert."""
        chosen = self.span(expert)
        return self.rows[chosen], self.gates[chosen]

    def inputs_of(self, expert: int) -> Tensor:
        """Return the numbers of one expert's inputs, int64 [its tokens], in the order of `of_expert`."""
        return self.inputs[self.span(expert)]


class LayerForward:
    """A layer as it is built, run over hidden states [tokens, state_width], batch by batch."""

    def __init__(
        self,
        network: Network,
        layer: int,
        module: nn.Module,
        hidden: Activations,
        tokens: Tensor,
        device: torch.device,
    ) -> None:
        """Prepare the layer `layer` of `network`, which `module` is, on `device`.

        hidden: its inputs. tokens: their token ids, int64 [tokens].
        """
        self._network, self._layer, self._module = network, layer, module
        self._hidden, self._tokens, self._device = hidden, tokens, device

    @cached_property
    def adds_experts(self) -> bool:
        """Whether the layer's output is that without its experts plus their sum, as it is in most families.

        In others it goes through a norm, a product or a projection first: these run a second time, with the
        sum (`complete`). Found by running a few tokens with two sums.
        """
        if self._network.adds_experts or self._network.experts[self._layer] is None:
            return True
        shape = 1, SAMPLE_TOKENS, *self._network.state_shape
        states = (
            torch.linspace(-1, 1, SAMPLE_TOKENS * self._network.state_width, dtype=torch.float32)
            .view(shape)
            .sin()
        )
        states = states.to(device=self._device, dtype=self._network.compute_dtype)

        size = SAMPLE_TOKENS, self._experts.hidden_size
        ones = torch.ones(size, device=states.device, dtype=states.dtype)

        def run(scale: float) -> Tensor:
            self._set_capture(lambda *_: scale * ones.cumsum(1).cos())
            return self._call(states, torch.zeros(shape[:2], dtype=torch.int64)).double()

        with forward_mode():
            found = run(8.0) - run(2.0)
            expected = 6.0 * torch.ones_like(found).flatten(2).cumsum(2).cos().view(found.shape)
        return float((found - expected).norm() / expected.norm()) < ADDS_WITHIN

    def run(self, batch: Batch) -> Tensor:
        """Return the layer's output for a batch's real tokens, [tokens, state_width] in the compute dtype."""
        with forward_mode():
            states = batch.gather(self._hidden, self._device)
            states = states.view(*states.shape[:2], *self._network.state_shape)
            return batch.select(self._call(states, self._ids(batch, self._tokens)).flatten(2))

    def attend(self, batch: Batch) -> Attended:
        """Run a layer with routed experts up to them, and tell what they are to do."""
        calls: list[tuple[Tensor, ...]] = []

        def capture(*call: Tensor) -> Tensor | None:
            calls.append(tuple(batch.select(values) for values in call))
            return self._passed_on(*call)

        self._set_capture(capture)
        output = self.run(batch)
        ((inputs, ids, gates),) = calls
        inputs = inputs.reshape(-1, self._experts.hidden_size)
        return Attended(output=output, inputs=inputs, ids=ids.long(), gates=gates.float())

    def ignore_experts(self) -> None:
        """Run a layer without what its experts would add."""
        self._set_capture(lambda *_: None)

    def complete(self, batch: Batch, sums: Tensor) -> Tensor:
        """Return the layer's output as `run` does, with the experts' sum, float32 [tokens, hidden]."""

        def give(inputs: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
            whole = sums.new_zeros(batch.rows.numel(), sums.shape[1], device=inputs.device)
            whole[batch.is_token.flatten().to(inputs.device)] = sums.to(inputs.device)
            passed_on = self._passed_on(inputs, ids, gates)
            whole = whole if passed_on is None else whole + passed_on
            return whole.to(inputs.dtype)

        self._set_capture(give)
        return self.run(batch)

    def through(self, batch: Batch, states: Tensor, tokens: Tensor, experts: SumExperts | None) -> Tensor:
        """Return the layer's output for a batch's real tokens, [tokens, state_width] like `states`.

        Whoever calls decides on gradients: it is differentiable in the states and in whatever `experts` uses,
        which gives the experts' sum; None for a layer without them.

        tokens: the ids of the text that the batch is of, int64 [tokens].
        """
        is_token = batch.is_token.flatten().to(states.device)
        places = is_token.nonzero()[:, 0]
        which = torch.where(is_token, is_token.cumsum(0) - 1, 0)  # padding repeats the first token

        def give(*call: Tensor) -> Tensor:
            assert experts is not None
            inputs, ids, gates = (batch.select(values) for values in call)
            inputs = inputs.reshape(-1, self._experts.hidden_size)
            sums = experts(inputs, ids.long(), gates.float())
            whole = sums.new_zeros(len(is_token), sums.shape[1]).index_copy(0, places, sums)
            passed_on = self._passed_on(*call)
            return (whole if passed_on is None else whole + passed_on).to(call[0].dtype)

        if experts is not None:
            self._set_capture(give)
        states = states[which].view(*batch.rows.shape, *self._network.state_shape)
        return batch.select(self._call(states, self._ids(batch, tokens)).flatten(2))

    @property
    def _experts(self) -> ExpertShape:
        shape = self._network.experts[self._layer]
        assert shape is not None
        return shape

    def _ids(self, batch: Batch, tokens: Tensor) -> Tensor | None:
        """Return a batch's token ids, int64 [batch, longest], if layers need them; padding has token 0's."""
        return tokens[batch.rows.clamp(min=0)] if self._network.needs_ids else None

    def _call(self, states: Tensor, ids: Tensor | None) -> Tensor:
        """Return the layer's output for hidden states [batch, length, ...]."""
        batch, length = states.shape[:2]
        arguments, named = self._network.calls(batch, length, self._device, ids)[self._layer]
        output = self._module(states, *arguments, **named)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    def _set_capture(self, capture: Capture) -> None:
        module = self._network.experts_module(self._module, self._layer)
        set_capture(module, capture, self._experts.own_inputs)

    def _passed_on(self, inputs: Tensor, ids: Tensor, gates: Tensor) -> Tensor | None:
        """Return what experts numbered past the last one give: their input, times their gates."""
        if not self._experts.num_identities:
            return None
        identity = ids >= self._experts.num_experts
        return inputs * (gates * identity).sum(1, keepdim=True).to(inputs.dtype)


def input_rows(token_rows: Tensor, experts: ExpertShape) -> Tensor:
    """Return the numbers of some tokens' inputs of the experts, int64 [tokens * inputs_per_token]."""
    count = experts.inputs_per_token
    if count == 1:
        return token_rows
    return (token_rows.unsqueeze(1) * count + torch.arange(count, device=token_rows.device)).flatten()


def in_token_order(chosen: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return ids and gates [tokens, top_k] in the tokens' order, from (tokens, ids, gates) of each batch."""
    rows, ids, gates = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    order = torch.argsort(rows)
    return ids[order], gates[order]


def sort_by_expert(ids: Tensor, gates: Tensor, experts: ExpertShape) -> Routes:
    """Return the routes of tokens whose experts are ids and gates [tokens, top_k], on their device."""
    by_expert = torch.argsort(
        ids.flatten(), stable=True
    )  # no order but this one; past the last are identities
    counts = torch.bincount(ids.flatten(), minlength=experts.num_experts)
    rows = by_expert // ids.shape[1]
    return Routes(
        rows=rows,
        inputs=by_expert if experts.own_inputs else rows,
        gates=gates.flatten()[by_expert],
        starts=[0, *counts.cumsum(0).tolist()],
    )
