"""The routed experts of a layer with tuned scales: their sum, and its gradient."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe4.forward.layer import sort_by_expert
from moe4.model.experts import ExpertMath
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.tune.scales import PartScales


class _Chunk(NamedTuple):
    """Experts `first` to `stop`, which run at once, with room for `length` tokens each."""

    first: int
    stop: int
    length: int


class TunedExperts:
    """Experts whose scales are those of `scales`, by part.

    weights: the release's, float32 [experts, out, in] by part, if there is room for them; else `load` reads
    one, [out, in], by its name whenever it is used. Either way the tuned weights are made again on the way
    back (Chen et al., arXiv:1604.06174).
    padded_bytes: for the tokens of several experts, padded to one length, that run at once. That takes a GPU
    fewer and larger products. With 0 experts run one by one.
    """

    def __init__(
        self,
        shape: ExpertShape,
        math: ExpertMath,
        scales: dict[Part, PartScales],
        weights: dict[Part, Tensor] | None,
        load: Callable[[str], Tensor],
        padded_bytes: int,
    ) -> None:
        self._shape, self._math, self._scales = shape, math, scales
        self._weights, self._load = weights, load
        self._padded_bytes = padded_bytes if weights is not None else 0

    def sum(self, inputs: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        """Return the experts' weighted sum, float32 [tokens, hidden].

        inputs: float32 [tokens * inputs_per_token, hidden].
        ids: int64 [tokens, top_k]; gates: float32 [tokens, top_k].
        """
        return self._sum_padded(inputs, ids, gates) if self._padded_bytes else self._sum(inputs, ids, gates)

    def _sum(self, inputs: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        routes = sort_by_expert(ids, gates, self._shape)
        total = inputs.new_zeros(len(ids), self._shape.hidden_size)
        for expert in range(self._shape.num_experts):
            rows, weights = routes.of_expert(expert)
            if len(rows):
                output = self._checkpointed(expert, inputs[routes.inputs_of(expert)])
                total = total.index_add(0, rows, weights[:, None] * output)
        return total

    def _sum_padded(self, inputs: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        """No two numbers are added in an order that changes from run to run: every index occurs once."""
        (num_tokens, top_k), device = ids.shape, ids.device
        order = torch.argsort(ids.flatten(), stable=True)
        sorted_ids = ids.flatten()[order]
        counts = torch.bincount(sorted_ids, minlength=self._shape.num_experts)
        ends = counts.cumsum(0)
        within = torch.arange(len(order), device=device) - (ends - counts)[sorted_ids]
        if not self._shape.own_inputs:
            inputs = inputs[:, None].expand(-1, top_k, -1).reshape(num_tokens * top_k, -1)
        x = inputs.index_select(0, order)
        outputs, stop_of = [], [0, *ends.tolist()]
        for chunk in self._chunks(counts.tolist()):
            rows = slice(stop_of[chunk.first], stop_of[chunk.stop])
            places = (sorted_ids[rows] - chunk.first) * chunk.length + within[rows]
            num_experts = chunk.stop - chunk.first
            padded = x.new_zeros(num_experts * chunk.length, x.shape[1]).index_copy(0, places, x[rows])
            found = self._checkpointed(
                slice(chunk.first, chunk.stop), padded.view(num_experts, chunk.length, -1)
            )
            outputs.append(found.flatten(0, 1).index_select(0, places))
        outputs.append(x.new_zeros(len(order) - sum(map(len, outputs)), x.shape[1]))  # of identities
        by_token = torch.cat(outputs).index_select(0, torch.argsort(order))
        return (by_token.view(num_tokens, top_k, -1) * gates[..., None]).sum(1)

    def _chunks(self, counts: list[int]) -> Iterator[_Chunk]:
        """Yield neighbours whose padded tokens fit; those without tokens are left out at either end."""
        shape = self._shape
        token_bytes = 4 * (2 * shape.hidden_size + 3 * shape.width)
        first, length = 0, 0
        for expert, count in enumerate(counts[: shape.num_experts]):
            longest = max(length, count)
            if length and (expert + 1 - first) * longest * token_bytes > self._padded_bytes:
                yield _Chunk(first, expert, length)
                first, longest = expert, count
            elif not length:
                first = expert
            length = longest
        if length:
            yield _Chunk(first, shape.num_experts, length)

    def _checkpointed(self, experts: int | slice, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            output: Tensor = checkpoint(
                self._run, experts, inputs, use_reentrant=False, preserve_rng_state=False
            )
            return output
        return self._run(experts, inputs)

    def _run(self, experts: int | slice, x: Tensor) -> Tensor:
        """Return [..., tokens, hidden] of x of that shape; several experts are the first dimension."""
        return self._math.run(experts, x, [self._tuned(experts, part) for part in self._shape.parts])

    def _tuned(self, experts: int | slice, part: Part) -> Tensor:
        """Return tuned weights, float32 [..., out, in]."""
        if self._weights is not None:
            decoded = self._weights[part][experts]
        else:
            assert isinstance(experts, int)
            decoded = self._load(self._shape.weight_name(experts, part))
        ratio = self._scales[part].ratio(experts)
        return (decoded.view(*ratio.shape, -1) * ratio[..., None]).view(decoded.shape)
