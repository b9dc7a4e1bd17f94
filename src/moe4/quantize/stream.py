"""Quantize a layer's routed experts, one after another, each on the tokens that the router sent it."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe4.checkpoint.shard import ShardWriter
from moe4.gptq.hessian import Hessian, shrink
from moe4.gptq.solver import QuantizedMatrix, factorize, quantize_gptq
from moe4.model.architecture import PARTS, ExpertShape, Part
from moe4.quantize.attend import Routing, pack_hessian, sum_hessians
from moe4.quantize.audit import LayerRecord, matrix_record
from moe4.quantize.bench import Workbench, stored_tensors, write_all
from moe4.quantize.plan import expert_weight
from moe4.quantize.ranks import Parcel

POOL_TOKENS = 1024  # tokens of the whole layer that stand in for a cold expert's own in down's Hessian
ROWS_AT_ONCE = 16384
GATE_UP: tuple[Part, Part] = ("gate", "up")

Results = dict[Part, QuantizedMatrix]


class ExpertStream:
    """The experts of one layer. Peak memory: one expert, its tokens and three Hessians."""

    def __init__(self, bench: Workbench, experts: ExpertShape, layer: int, routing: Routing) -> None:
        self._bench, self._experts, self._routing = bench, experts, routing
        self._activation: Callable[[Tensor], Tensor] = bench.network.activation(layer)
        num_parts = -(-routing.inputs.shape[0] // ROWS_AT_ONCE)
        self._pooled = sum_hessians(bench, num_parts, self._pooled_part, experts.hidden_size).mean()
        stride = max(1, routing.inputs.shape[0] // POOL_TOKENS)
        self._pool = routing.inputs[::stride][:POOL_TOKENS].to(bench.device)

    def run(self, total: Tensor | None, writer: ShardWriter | None, record: LayerRecord) -> None:
        """Quantize and write every expert; add its quantized output to its tokens' rows of `total`.

        Experts are spread over the ranks; only rank 0 has `total` and `writer`, and fills in `record`.
        """
        for expert, parcel in self._bench.ranks.spread(self._experts.num_experts, self._work):
            assert total is not None
            assert writer is not None
            rows, gates = self._routing.of_expert(expert)
            output = parcel.tensors.pop("output").float()
            total.index_add_(0, rows, (output * gates.to(output.device).unsqueeze(1)).cpu())
            write_all(writer, parcel.tensors)
            record.experts.append(parcel.facts)
            self._bench.step_done(f"layer {record.layer + 1} expert {expert + 1}")

    def _pooled_part(self, number: int) -> Parcel:
        """Return the Hessian of one piece of all tokens."""
        hessian = Hessian(self._experts.hidden_size, self._bench.device)
        rows = slice(number * ROWS_AT_ONCE, (number + 1) * ROWS_AT_ONCE)
        hessian.add(self._routing.inputs[rows].to(self._bench.device))
        return pack_hessian(hessian)

    def _work(self, expert: int) -> Parcel:
        """Quantize an expert: its record, stored tensors, and `output` [tokens, hidden] for its tokens."""
        rows, gates = self._routing.of_expert(expert)
        x = self._routing.inputs[rows].to(self._bench.device)
        results = self._quantize(expert, x, gates.to(self._bench.device))
        with torch.inference_mode():
            output = self._run_gate_up(results, x) @ self._bench.served(results["down"]).T
        matrices = {str(part): matrix_record(results[part]) for part in PARTS}
        tensors = {"output": output}
        for part in PARTS:
            tensors.update(stored_tensors(expert_weight(self._experts, expert, part), results[part]))
        return Parcel(facts={"num_tokens": int(rows.numel()), **matrices}, tensors=tensors)

    def _quantize(self, expert: int, x: Tensor, g: Tensor) -> Results:
        """Quantize gate and up stacked on the tokens x, then down on what the quantized two make of them."""
        bench, settings, experts = self._bench, self._bench.recipe.gptq, self._experts
        weights = g.square() if settings.hessian_weighting == "gate" else None
        own = Hessian(experts.hidden_size, bench.device)
        own.add(x, weights)
        H = shrink(own.mean(), x.shape[0], self._pooled, settings.shrinkage_tokens)
        originals = [bench.load(expert_weight(experts, expert, part)) for part in GATE_UP]
        gate, up = quantize_gptq(originals, factorize(H, settings), bench.recipe.group_size, settings)
        results: Results = {"gate": gate, "up": up}
        with torch.inference_mode():
            own = Hessian(experts.width, bench.device)
            own.add(self._run_gate_up(results, x), weights)
            pooled = Hessian(experts.width, bench.device)
            pooled.add(self._run_gate_up(results, self._pool))
        H = shrink(own.mean(), x.shape[0], pooled.mean(), settings.shrinkage_tokens)
        originals = [bench.load(expert_weight(experts, expert, "down"))]
        (results["down"],) = quantize_gptq(
            originals, factorize(H, settings), bench.recipe.group_size, settings
        )
        return results

    def _run_gate_up(self, results: Results, x: Tensor) -> Tensor:
        """Return activation(x gate^T) * (x up^T) with the quantized weights, [tokens, width]."""
        gate, up = self._bench.served(results["gate"]), self._bench.served(results["up"])
        return self._activation(x @ gate.T) * (x @ up.T)
