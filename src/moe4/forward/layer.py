"""One decoder layer on a batch of hidden states, without its routed experts, and who is routed where."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe4.calibration.activations import Activations, Batch
from moe4.model.architecture import Network
from moe4.model.experts import set_capture


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """What a layer did with a batch's real tokens before its routed experts.

    output: [tokens, hidden] in the compute dtype, the experts' sum missing; inputs: the same, of the experts.
    ids: int64 [tokens, top_k]; gates: float32 [tokens, top_k].
    """

    output: Tensor
    inputs: Tensor
    ids: Tensor
    gates: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """Which tokens go to which expert.

    rows: int64 [tokens * top_k], token numbers, those of expert 0 first; gates: float32, in that order.
    starts: where each expert's begin, and the end.
    """

    rows: Tensor
    gates: Tensor
    starts: list[int]

    def span(self, expert: int) -> slice:
        """Return where an expert's tokens stand."""
        return slice(self.starts[expert], self.starts[expert + 1])

    def of_expert(self, expert: int) -> tuple[Tensor, Tensor]:
        """Return (token numbers, gate weights) of one expert."""
        chosen = self.span(expert)
        return self.rows[chosen], self.gates[chosen]


class LayerForward:
    """A layer as it is built, run over hidden states [tokens, hidden], batch by batch."""

    def __init__(
        self, network: Network, layer: int, module: nn.Module, hidden: Activations, device: torch.device
    ) -> None:
        self._network, self._layer, self._module = network, layer, module
        self._hidden, self._device = hidden, device
        self._rotary = network.build_rotary(device)

    def run(self, batch: Batch) -> Tensor:
        """Return the layer's output for a batch's real tokens, [tokens, hidden] in the compute dtype."""
        with torch.inference_mode():
            states = batch.gather(self._hidden, self._device)
            positions = torch.arange(states.shape[1], device=self._device).unsqueeze(0)
            output = self._module(
                states,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=self._rotary(states, positions),
                use_cache=False,
            )
            return batch.select(output)

    def attend(self, batch: Batch) -> Attended:
        """Run a layer with routed experts up to them, and tell what they are to do."""
        calls: list[tuple[Tensor, ...]] = []

        def capture(*call: Tensor) -> None:
            calls.append(tuple(batch.select(values) for values in call))

        set_capture(self._network.experts_module(self._module, self._layer), capture)
        output = self.run(batch)
        ((inputs, ids, gates),) = calls
        return Attended(output=output, inputs=inputs, ids=ids.long(), gates=gates.float())


def in_token_order(chosen: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return ids and gates [tokens, top_k] in the tokens' order, from (tokens, ids, gates) of each batch."""
    rows, ids, gates = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    order = torch.argsort(rows)
    return ids[order], gates[order]


def sort_by_expert(ids: Tensor, gates: Tensor, num_experts: int) -> Routes:
    """Return the routes of tokens whose experts are ids and gates [tokens, top_k], on their device."""
    by_expert = torch.argsort(ids.flatten(), stable=True)  # no order but this one
    counts = torch.bincount(ids.flatten(), minlength=num_experts)
    return Routes(
        rows=by_expert // ids.shape[1],
        gates=gates.flatten()[by_expert],
        starts=[0, *counts.cumsum(0).tolist()],
    )
