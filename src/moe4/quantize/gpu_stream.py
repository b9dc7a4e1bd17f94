"""Quantize a layer's routed experts on a GPU: batches are read, copied, solved and written at the same time.

One thread reads the next batch from disk into pinned memory and starts its copies on a stream of its own, one
solves, and the caller's writes what is finished. The experts' inputs and the layer's sum lie on the GPU where
they leave RESERVED_BYTES of it free; else rows travel as they are needed.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from moe4.calibration.activations import ActivationStore
from moe4.checkpoint.shard import ShardWriter
from moe4.gptq.gpu.products import add_gram_
from moe4.gptq.gpu.solver import BatchSolver, Stage, no_stage
from moe4.gptq.hessian import Hessian
from moe4.model.architecture import PARTS, ExpertShape, Part
from moe4.quantize.attend import Routing, pack_hessian
from moe4.quantize.audit import LayerRecord, matrix_record
from moe4.quantize.bench import Workbench, stored_tensors, write_all
from moe4.quantize.gpu_experts import ExpertQuantizer, ExpertTask, batch_size
from moe4.quantize.plan import expert_weight
from moe4.quantize.ranks import Parcel
from moe4.quantize.reader import Stored
from moe4.quantize.stream import POOL_PART, ExpertStream

RESERVED_BYTES = 20 << 30  # what a batch of the largest experts takes, with its outputs twice
PIECE_BYTES = 256 << 20


class GpuExpertStream(ExpertStream):
    """The experts of one layer. Peak memory of the GPU: RESERVED_BYTES and what lies there for the layer."""

    def __init__(
        self,
        bench: Workbench,
        experts: ExpertShape,
        layer: int,
        routing: Routing,
        stage: Stage = no_stage,
    ) -> None:
        self._rows = DeviceRows(routing.inputs, bench.device)
        super().__init__(bench, experts, layer, routing)
        self._stage = stage
        self._quantizer = ExpertQuantizer(
            solver=BatchSolver(settings=bench.recipe.gptq, group_size=bench.recipe.group_size, stage=stage),
            shape=experts,
            pooled=self._pooled,
            pool=self._pool,
            activation=self._activation,
        )

    def run(self, total: ActivationStore | None, writer: ShardWriter | None, record: LayerRecord) -> None:
        """Quantize and write every expert, as `ExpertStream.run` does."""
        bench, num_experts = self._bench, self._experts.num_experts
        sums = None if total is None else DeviceRows(total, bench.device)
        with Batches(bench, self._experts, self._solve) as batches:
            for expert, parcel in bench.ranks.spread(num_experts, batches.take):
                assert sums is not None
                assert writer is not None
                output = parcel.tensors.pop("output")
                rows, gates = self._routing.of_expert(expert)
                with self._stage("add outputs"):
                    sums.add(rows, output.to(bench.device), gates.to(bench.device))
                write_all(writer, parcel.tensors)
                record.experts.append(parcel.facts)
                bench.step_done(f"layer {record.layer + 1} expert {expert + 1}")
        if sums is not None:
            sums.write_back()

    def _pooled_part(self, number: int) -> Parcel:
        """Return the Hessian of one piece of all tokens."""
        hessian = Hessian(self._experts.hidden_size, self._bench.device)
        start, stop = number * POOL_PART, min((number + 1) * POOL_PART, self._routing.inputs.shape[0])
        x = self._rows.read(torch.arange(start, stop))
        add_gram_(hessian.sum, x)
        hessian.weight, hessian.num_tokens = float(len(x)), len(x)
        return pack_hessian(hessian)

    def _solve(self, experts: list[int], stored: list[dict[Part, Stored]]) -> list[Parcel]:
        """Quantize a batch of experts, whose weights are on the device."""
        found = self._quantizer.quantize(
            [self._task(expert, weights) for expert, weights in zip(experts, stored, strict=True)]
        )
        parcels = []
        for expert, (results, output) in zip(experts, found, strict=True):
            tensors = {}
            with self._stage("pack and copy out"):
                for part in PARTS:
                    weight = expert_weight(self._experts, expert, part)
                    tensors.update(stored_tensors(weight, results[part], to_host))
            matrices = {str(part): matrix_record(results[part]) for part in PARTS}
            num_tokens = len(self._routing.of_expert(expert)[0])
            parcels.append(
                Parcel(facts={"num_tokens": num_tokens, **matrices}, tensors={**tensors, "output": output})
            )
        return parcels

    def _task(self, expert: int, stored: dict[Part, Stored]) -> ExpertTask:
        rows, gates = self._routing.of_expert(expert)

        def decode(part: Part) -> Tensor:
            return self._bench.decode(expert_weight(self._experts, expert, part), stored.pop(part))

        def read(start: int, stop: int) -> Tensor:
            return self._rows.read(rows[start:stop])

        return ExpertTask(decode=decode, read=read, gates=gates.to(self._bench.device))


class DeviceRows:
    """Rows of an activation store, on the device where there is room for all of them."""

    def __init__(self, store: ActivationStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self._resident: Tensor | None = None
        dtype = store.read(slice(0, 0)).dtype
        num_bytes = store.shape[0] * store.shape[1] * dtype.itemsize
        if num_bytes + RESERVED_BYTES > free_bytes(device):
            return
        self._resident = torch.empty(store.shape, dtype=dtype, device=device)
        for rows in self._pieces(dtype):
            self._resident[rows] = to_device(store.read(rows), device)

    def read(self, rows: Tensor) -> Tensor:
        """Return rows [n, columns], given by number on the CPU, on the device."""
        if self._resident is not None:
            return self._resident.index_select(0, to_device(rows, self._device))
        return to_device(self._store.read(rows), self._device)

    def add(self, rows: Tensor, values: Tensor, gates: Tensor) -> None:
        """Add values [n, columns] times gates [n], both on the device, to rows that are named once."""
        step = max(1, PIECE_BYTES // (4 * self._store.shape[1]))
        for start in range(0, len(rows), step):
            here = slice(start, start + step)
            weighted = values[here].float() * gates[here].unsqueeze(1)
            if self._resident is None:
                self._store.add(rows[here], weighted.cpu())
            else:
                self._resident.index_add_(0, to_device(rows[here], self._device), weighted)

    def write_back(self) -> None:
        """Put what lies on the device into the store."""
        if self._resident is not None:
            for rows in self._pieces(self._resident.dtype):
                self._store.write(rows, self._resident[rows])
            self._resident = None

    def _pieces(self, dtype: torch.dtype) -> list[slice]:
        num_rows, columns = self._store.shape
        step = max(1, PIECE_BYTES // (columns * dtype.itemsize))
        return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """A batch on its way to the device."""

    experts: list[int]
    stored: list[dict[Part, Stored]]
    arrived: torch.cuda.Event | None


class Batches:
    """Gives out this rank's experts in order; the batch after the one at hand is solved meanwhile."""

    def __init__(
        self,
        bench: Workbench,
        experts: ExpertShape,
        solve: Callable[[list[int], list[dict[Part, Stored]]], list[Parcel]],
    ) -> None:
        self._bench, self._experts, self._solve = bench, experts, solve
        numbers, size = list(bench.own_numbers(experts.num_experts)), batch_size(experts)
        self._left = iter([numbers[start : start + size] for start in range(0, len(numbers), size)])
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="moe4-reader")
        self._solver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="moe4-solver")
        self._copies = _new_stream(bench.device)
        self._read: Future[_Read] | None = None
        self._solved: Future[dict[int, Parcel]] | None = None
        self._ready: dict[int, Parcel] = {}

    def __enter__(self) -> Self:
        self._read_ahead()
        self._solve_ahead()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._solver.shutdown(wait=True, cancel_futures=True)
        self._reader.shutdown(wait=True, cancel_futures=True)

    def take(self, expert: int) -> Parcel:
        """Return the expert that is next."""
        if not self._ready:
            assert self._solved is not None
            self._ready = self._solved.result()
            self._solve_ahead()
        return self._ready.pop(expert)

    def _read_ahead(self) -> None:
        experts = next(self._left, None)
        self._read = None if experts is None else self._reader.submit(self._read_batch, experts)

    def _solve_ahead(self) -> None:
        read = self._read
        self._solved = None if read is None else self._solver.submit(self._solve_batch, read)
        if read is not None:
            self._read_ahead()

    def _read_batch(self, experts: list[int]) -> _Read:
        checkpoint, shape, device = self._bench.checkpoint, self._experts, self._bench.device
        stored: list[dict[Part, Stored]] = []
        with torch.cuda.stream(self._copies):
            for expert in experts:
                parts = {part: checkpoint.read(shape.weight_name(expert, part)) for part in PARTS}
                stored.append(
                    {part: tuple(to_device(t, device) for t in tensors) for part, tensors in parts.items()}
                )
        return _Read(
            experts=experts, stored=stored, arrived=self._copies.record_event() if self._copies else None
        )

    def _solve_batch(self, future: Future[_Read]) -> dict[int, Parcel]:
        read = future.result()
        if read.arrived is not None:
            stream = torch.cuda.current_stream(self._bench.device)
            stream.wait_event(read.arrived)
            for parts in read.stored:
                for tensors in parts.values():
                    for tensor in tensors:
                        tensor.record_stream(stream)
        parcels = self._solve(read.experts, read.stored)
        if read.arrived is not None:
            torch.cuda.current_stream(self._bench.device).synchronize()
        return dict(zip(read.experts, parcels, strict=True))


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device, by way of pinned memory; the copy may not have ended."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Return a tensor in the host's memory; from a GPU it comes when its stream is waited for."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def free_bytes(device: torch.device) -> int:
    """Return what of the device's memory can be had; none of a CPU's is meant to be kept for activations."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
