"""Quantize a layer's routed experts on a GPU: batches are read, copied, solved and written at the same time.

The experts' inputs and the layer's sum lie on the GPU where it has room for them (`gpu_memory`); else rows
travel as they are needed.
"""

import threading

import torch
from torch import Tensor

from moe4.calibration.activations import Activations, ResidentActivations
from moe4.checkpoint.shard import ShardWriter
from moe4.gptq.gpu.products import add_gram_
from moe4.gptq.gpu.solver import BatchSolver, Stage, no_stage
from moe4.gptq.hessian import Hessian
from moe4.model.architecture import PARTS, ExpertShape, Part
from moe4.quantize.gpu.batches import Batches
from moe4.quantize.gpu.experts import ExpertQuantizer, ExpertTask
from moe4.quantize.layer.attend import Routing, pack_hessian
from moe4.quantize.layer.expert_stream import POOL_PART, ExpertStream
from moe4.quantize.layer.workbench import Workbench, stored_tensors, write_all
from moe4.quantize.planning.release_plan import expert_weight
from moe4.quantize.reporting.layer_record import LayerRecord, matrix_record
from moe4.quantize.transfer.device_memory import has_room, to_device, to_host, use_device
from moe4.quantize.transfer.ranks import Parcel
from moe4.quantize.transfer.reader import Stored

SECOND_SOLVER_BYTES = 20 << 30  # as RESERVED_BYTES
PIECE_BYTES = 256 << 20


def warm_up(bench: Workbench) -> None:
    """Have the solver's kernels compiled by a thread while the first layers are read and run."""
    solver = BatchSolver(settings=bench.recipe.gptq, group_size=bench.recipe.group_size)

    def compile_kernels() -> None:
        use_device(bench.device)
        solver.warm_up(bench.device)

    threading.Thread(target=compile_kernels, name="moe4-warm-up", daemon=True).start()


class GpuExpertStream(ExpertStream):
    """The experts of one layer. Peak memory of the GPU: RESERVED_BYTES and what lies there for the layer.

    Where SECOND_SOLVER_BYTES more are free, two batches are solved side by side.
    """

    def __init__(
        self,
        bench: Workbench,
        experts: ExpertShape,
        layer: int,
        routing: Routing,
        stage: Stage = no_stage,
    ) -> None:
        super().__init__(bench, experts, layer, routing)
        self._stage = stage
        resident = isinstance(routing.inputs, ResidentActivations)
        self._token_rows = routing.rows.to(bench.device) if resident else routing.rows.cpu()
        self._gates = routing.gates.to(bench.device)
        self._quantizer = ExpertQuantizer(
            solver=BatchSolver(settings=bench.recipe.gptq, group_size=bench.recipe.group_size, stage=stage),
            shape=experts,
            pooled=self._pooled,
            pool=self._pool,
            activation=self._activation,
        )
        if bench.device.type == "cuda":  # the solvers' streams do not wait for this thread's
            torch.cuda.current_stream(bench.device).synchronize()

    def run(self, total: Activations | None, writer: ShardWriter | None, record: LayerRecord) -> None:
        """Quantize and write every expert, as `ExpertStream.run` does."""
        bench, num_experts = self._bench, self._experts.num_experts
        on_gpu = bench.device.type == "cuda"
        num_solvers = 2 if on_gpu and has_room(SECOND_SOLVER_BYTES, bench.device) else 1
        with Batches(bench, self._experts, self._solve, num_solvers) as batches:
            for expert, parcel in bench.ranks.spread(num_experts, batches.take):
                assert total is not None
                assert writer is not None
                with self._stage("add outputs"):
                    self._add_rows(total, expert, parcel.tensors.pop("output"))
                    if bench.probe is not None:
                        bench.probe.add_expert(expert, parcel.tensors)
                write_all(writer, self._on_host(parcel.tensors))
                record.experts.append(parcel.facts)
                bench.progress.expert_done(f"layer {record.layer + 1} expert {expert + 1}")

    def _add_rows(self, total: Activations, expert: int, output: Tensor) -> None:
        """Add an expert's output [tokens, hidden], times its gates, to its tokens' rows of `total`."""
        output = output.to(self._bench.device)
        here = self._range(expert)
        step = max(1, PIECE_BYTES // (4 * output.shape[1]))
        for start in range(here.start, here.stop, step):
            rows = slice(start, min(start + step, here.stop))
            values = output[rows.start - here.start : rows.stop - here.start].float()
            weighted = values * self._gates[rows].unsqueeze(1)
            if isinstance(total, ResidentActivations):
                total.add(self._token_rows[rows], weighted)
            else:
                total.add(self._token_rows[rows].cpu(), weighted.cpu())

    def _on_host(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors in the host's memory; those of other ranks come by way of this one's GPU."""
        if not any(tensor.is_cuda for tensor in tensors.values()):
            return tensors
        found = {name: to_host(tensor) for name, tensor in tensors.items()}
        torch.cuda.current_stream(self._bench.device).synchronize()
        return found

    def _range(self, expert: int) -> slice:
        """Return where an expert's tokens stand in the routing."""
        return slice(self._routing.starts[expert], self._routing.starts[expert + 1])

    def _read(self, rows: Tensor | slice) -> Tensor:
        """Return rows [n, hidden] of the experts' inputs, on the device."""
        return to_device(self._routing.inputs.read(rows), self._bench.device)

    def _pooled_part(self, number: int) -> Parcel:
        """Return the Hessian of one piece of all tokens."""
        hessian = Hessian(self._experts.hidden_size, self._bench.device)
        start, stop = number * POOL_PART, min((number + 1) * POOL_PART, self._routing.inputs.shape[0])
        x = self._read(slice(start, stop))
        add_gram_(hessian.sum, x)
        hessian.weight, hessian.num_tokens = float(len(x)), len(x)
        return pack_hessian(hessian)

    def _solve(self, experts: list[int], stored: list[dict[Part, Stored]]) -> list[Parcel]:
        """Quantize a batch of experts, whose weights are on the device."""
        found = self._quantizer.quantize(
            [self._task(expert, dict(weights)) for expert, weights in zip(experts, stored, strict=True)]
        )
        place = to_host if self._bench.ranks.is_first else torch.Tensor.contiguous
        parcels = []
        for expert, weights, (results, output) in zip(experts, stored, found, strict=True):
            tensors = {}
            if self._bench.probe is not None:
                with self._stage("probe"):
                    tensors.update(self._bench.probe.run_expert(self._experts, expert, weights, results))
            with self._stage("pack and copy out"):
                for part in PARTS:
                    weight = expert_weight(self._experts, expert, part)
                    tensors.update(stored_tensors(weight, results[part], place))
            matrices = {str(part): matrix_record(results[part]) for part in PARTS}
            here = self._range(expert)
            facts = {"num_tokens": here.stop - here.start, **matrices}
            parcels.append(Parcel(facts=facts, tensors={**tensors, "output": output}))
        return parcels

    def _task(self, expert: int, stored: dict[Part, Stored]) -> ExpertTask:
        here = self._range(expert)

        def decode(part: Part) -> Tensor:
            return self._bench.decode(expert_weight(self._experts, expert, part), stored.pop(part))

        def read(start: int, stop: int) -> Tensor:
            return self._read(self._token_rows[here.start + start : here.start + stop])

        return ExpertTask(decode=decode, read=read, gates=self._gates[here])
