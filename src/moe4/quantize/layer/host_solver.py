"""Quantize routed experts on the CPU, one after another, each on the tokens that the router sent it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from moe4.calibration.activations import Activations
from moe4.gptq.hessian import Hessian, shrink
from moe4.gptq.solver import factorize, quantize_gptq
from moe4.machine.allocator import trim_heaps
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.quantize.layer.attend import Routing
from moe4.quantize.layer.expert_stream import Take
from moe4.quantize.layer.pool import pool_tokens
from moe4.quantize.layer.workbench import Results, Workbench, stored_tensors
from moe4.quantize.planning.memory_bound import KEPT_BYTES, ROWS_AT_ONCE
from moe4.quantize.planning.release_plan import expert_weight
from moe4.quantize.reporting.layer_record import expert_record
from moe4.quantize.transfer.ranks import Parcel
from moe4.quantize.transfer.reader import ExpertReader, Stored

TRIM_ELEMENTS = 1 << 24  # of weights: every expert of a large model; a small one would lose time


class HostSolver:
    """Solves the experts of one layer. Peak memory: one expert, its tokens and three Hessians."""

    def __init__(self, bench: Workbench, experts: ExpertShape, layer: int, routing: Routing) -> None:
        self._bench, self._experts, self._layer, self._routing = bench, experts, layer, routing
        self._solved_elements = 0  # of weights, since the heaps were trimmed
        self._math = bench.network.expert_math(layer, bench.checkpoint.load, bench.device)
        self._pool = pool_tokens(bench, routing, self._add_to_pool)

    @property
    def at_once(self) -> int:
        """One: the ranks take turns at every expert."""
        return 1

    @contextmanager
    def solving(self, total: Activations | None) -> Iterator[Take]:
        """Run the probe up to the experts; read one expert ahead; solve the one that is taken."""
        numbers = self._bench.ranks.own_numbers(self._experts.num_experts, self.at_once)
        if self._bench.probe is not None:
            self._bench.probe.attend(self._layer)
        with ExpertReader(self._bench.checkpoint, self._experts, numbers) as reader:
            yield lambda expert: self.solve(expert, reader.take(expert), total)

    def add_output(self, total: Activations, expert: int, output: Tensor) -> None:
        """Add an expert's output, times its gates, to its tokens' rows of `total`."""
        self._add(total, expert, 0, output)

    def solve(self, expert: int, stored: dict[Part, Stored], total: Activations | None) -> Parcel:
        """Quantize an expert: its record and its stored tensors.

        Its output is added to `total`, piece by piece; without one it is in the parcel, [tokens, hidden].
        """
        self._solved_elements += self._experts.num_weights
        if self._solved_elements >= TRIM_ELEMENTS:
            self._solved_elements = 0
            trim_heaps()
        rows, gates = self._routing.routes.of_expert(expert)
        results, inner = self._quantize(expert, dict(stored), gates.to(self._bench.device))
        down, pieces = self._bench.served(results["down"]), []
        with torch.inference_mode():
            for number, start in enumerate(range(0, len(rows), ROWS_AT_ONCE)):
                states = inner[number] if inner else self._inner(expert, results, self._inputs(expert, start))
                output = self._math.output(expert, states @ down.T)
                if total is None:
                    pieces.append(output)
                else:
                    self._add(total, expert, start, output)
        tensors = {} if total is not None else {"output": torch.cat(pieces or [down.new_empty(0, len(down))])}
        stored_as: dict[str, Tensor] = {}
        for part in self._experts.parts:
            stored_as.update(stored_tensors(expert_weight(self._experts, expert, part), results[part]))
        if self._bench.probe is not None:
            tensors.update(self._bench.probe.run_expert(self._experts, expert, stored, results))
        facts = expert_record(len(rows), results).as_dict()
        return Parcel(facts=facts, tensors=tensors, stored=stored_as)

    def _add(self, total: Activations, expert: int, start: int, output: Tensor) -> None:
        """Add the output [tokens, hidden] for an expert's tokens from `start` on to their rows of `total`."""
        rows, gates = (item[start : start + len(output)] for item in self._routing.routes.of_expert(expert))
        total.add(rows, (output.float() * gates.to(output.device).unsqueeze(1)).cpu())

    def _add_to_pool(self, hessian: Hessian, start: int, stop: int) -> None:
        for first in range(start, stop, ROWS_AT_ONCE):
            rows = slice(first, min(first + ROWS_AT_ONCE, stop))
            hessian.add(self._routing.inputs.read(rows).to(self._bench.device))

    def _inputs(self, expert: int, start: int) -> Tensor:
        """Return ROWS_AT_ONCE rows of an expert's input [tokens, hidden] from `start` on."""
        rows = self._routing.routes.inputs_of(expert)
        return self._routing.inputs.read(rows[start : start + ROWS_AT_ONCE]).to(self._bench.device)

    def _quantize(self, expert: int, stored: dict[Part, Stored], g: Tensor) -> tuple[Results, list[Tensor]]:
        """Quantize gate and up stacked on their tokens, then down on what these make of them, quantized.

        Returns the results, and what they make of the tokens, in pieces, unless that is too much to keep.
        """
        bench, settings, experts = self._bench, self._bench.recipe.gptq, self._experts
        weights = g.square() if settings.hessian_weighting == "gate" else None
        starts = range(0, len(g), ROWS_AT_ONCE)

        def piece_weights(start: int) -> Tensor | None:
            return None if weights is None else weights[start : start + ROWS_AT_ONCE]

        def solve(H: Tensor, pooled: Tensor, parts: tuple[Part, ...]) -> None:
            factor = factorize(shrink(H, len(g), pooled, settings.shrinkage_tokens), settings)
            originals = [bench.decode(expert_weight(experts, expert, p), stored.pop(p)) for p in parts]
            found = quantize_gptq(originals, factor, bench.recipe.group_size, settings)
            results.update(zip(parts, found, strict=True))

        results: Results = {}
        own = Hessian(experts.hidden_size, bench.device)
        for start in starts:
            own.add(self._inputs(expert, start), piece_weights(start))
        H = own.mean()
        del own
        solve(H, self._pool.hessian, experts.first_parts)
        del H
        keeps = len(g) * experts.width * bench.network.compute_dtype.itemsize <= KEPT_BYTES
        inner: list[Tensor] = []
        own, pooled = Hessian(experts.width, bench.device), Hessian(experts.width, bench.device)
        with torch.inference_mode():
            for start in starts:
                states = self._inner(expert, results, self._inputs(expert, start))
                own.add(states, piece_weights(start))
                if keeps:
                    inner.append(states)
            pooled.add(self._inner(expert, results, self._pool.tokens))
        solve(own.mean(), pooled.mean(), ("down",))
        return results, inner

    def _inner(self, expert: int, results: Results, x: Tensor) -> Tensor:
        """Return what the quantized gate and up make of tokens, [tokens, width]."""
        first = (self._bench.served(results[part]) for part in self._experts.first_parts)
        return self._math.inner(expert, [x @ weight.T for weight in first])
