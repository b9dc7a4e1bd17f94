"""Quantize routed experts on a GPU: batches are read, copied, solved and handed out at the same time."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch
from torch import Tensor

from moe4.calibration.activations import Activations
from moe4.gptq.gpu.products import add_gram_
from moe4.gptq.gpu.solver import BatchSolver, Stage, no_stage
from moe4.gptq.hessian import Hessian
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.quantize.gpu.batch_size import experts_in_a_row
from moe4.quantize.gpu.batches import Batches
from moe4.quantize.gpu.experts import ExpertQuantizer, ExpertTask
from moe4.quantize.gpu.rows import DeviceRows
from moe4.quantize.layer.attend import Routing
from moe4.quantize.layer.expert_stream import Take
from moe4.quantize.layer.pool import pool_tokens
from moe4.quantize.layer.workbench import Workbench, stored_tensors
from moe4.quantize.planning.release_plan import expert_weight
from moe4.quantize.reporting.layer_record import expert_record
from moe4.quantize.transfer.device_memory import has_room, to_host, use_device
from moe4.quantize.transfer.ranks import Parcel
from moe4.quantize.transfer.reader import Stored

SECOND_SOLVER_BYTES = 20 << 30  # as RESERVED_BYTES


def warm_up(bench: Workbench) -> None:
    """Have the solver's kernels compiled by a thread while the first layers are read and run."""
    solver = BatchSolver(settings=bench.recipe.gptq, group_size=bench.recipe.group_size)

    def compile_kernels() -> None:
        use_device(bench.device)
        solver.warm_up(bench.device)

    threading.Thread(target=compile_kernels, name="moe4-warm-up", daemon=True).start()


class DeviceSolver:
    """Solves a layer's experts. Peak memory of the GPU: RESERVED_BYTES and what lies there for the layer.

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
        self._bench, self._experts, self._layer, self._stage = bench, experts, layer, stage
        self._probe_is_here: Future[None] = Future()
        self._rows = DeviceRows(routing, bench.device)
        pool = pool_tokens(bench, routing, self._add_to_pool)
        self._quantizer = ExpertQuantizer(
            solver=BatchSolver(settings=bench.recipe.gptq, group_size=bench.recipe.group_size, stage=stage),
            shape=experts,
            pooled=pool.hessian,
            pool=pool.tokens,
            math=bench.network.expert_math(layer, bench.checkpoint.load, bench.device),
        )
        if bench.device.type == "cuda":  # the solvers' streams do not wait for this thread's
            torch.cuda.current_stream(bench.device).synchronize()

    @property
    def at_once(self) -> int:
        """How many experts in a row this rank solves, in one batch."""
        return experts_in_a_row(self._experts, self._bench.ranks)

    @contextmanager
    def solving(self, total: Activations | None) -> Iterator[Take]:
        """Read and solve batches ahead of the experts that are taken; outputs are in their parcels.

        The first batches are solved while the probe runs up to the experts.
        """
        on_gpu = self._bench.device.type == "cuda"
        num_solvers = 2 if on_gpu and has_room(SECOND_SOLVER_BYTES, self._bench.device) else 1
        with Batches(self._bench, self._experts, self._solve, num_solvers) as batches:
            self._bring_probe()
            yield batches.take

    def _bring_probe(self) -> None:
        """Run the probe up to the layer's experts, for which the solvers wait."""
        try:
            if self._bench.probe is not None:
                self._bench.probe.attend(self._layer)
                if self._bench.device.type == "cuda":  # the solvers' streams do not wait for this thread's
                    torch.cuda.current_stream(self._bench.device).synchronize()
        except BaseException as error:
            self._probe_is_here.set_exception(error)
            raise
        self._probe_is_here.set_result(None)

    def add_output(self, total: Activations, expert: int, output: Tensor) -> None:
        """Add an expert's output, times its gates, to its tokens' rows of `total`."""
        with self._stage("add outputs"):
            self._rows.add(total, expert, output)

    def _add_to_pool(self, hessian: Hessian, start: int, stop: int) -> None:
        x = self._rows.read(slice(start, stop))
        add_gram_(hessian.sum, x)
        hessian.weight, hessian.num_tokens = float(len(x)), len(x)

    def _solve(self, experts: list[int], stored: list[dict[Part, Stored]]) -> list[Parcel]:
        """Quantize a batch of experts, whose weights are on the device."""
        found = self._quantizer.quantize(
            [self._task(expert, dict(weights)) for expert, weights in zip(experts, stored, strict=True)]
        )
        place = to_host if self._bench.ranks.is_first else torch.Tensor.contiguous
        parcels = []
        for expert, weights, (results, output) in zip(experts, stored, found, strict=True):
            tensors, stored_as = {"output": output}, {}
            if self._bench.probe is not None:
                with self._stage("probe"):
                    self._probe_is_here.result()
                    tensors.update(self._bench.probe.run_expert(self._experts, expert, weights, results))
            with self._stage("pack and copy out"):
                for part in self._experts.parts:
                    weight = expert_weight(self._experts, expert, part)
                    stored_as.update(stored_tensors(weight, results[part], place))
            record = expert_record(self._rows.num_tokens(expert), results)
            parcels.append(Parcel(facts=record.as_dict(), tensors=tensors, stored=stored_as))
        return parcels

    def _task(self, expert: int, stored: dict[Part, Stored]) -> ExpertTask:
        def decode(part: Part) -> Tensor:
            return self._bench.decode(expert_weight(self._experts, expert, part), stored.pop(part))

        def read(start: int, stop: int) -> Tensor:
            return self._rows.of_expert(expert, start, stop)

        return ExpertTask(expert=expert, decode=decode, read=read, gates=self._rows.gates(expert))
