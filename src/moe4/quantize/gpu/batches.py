"""Batches of experts on their way through a GPU: read from files, solved, handed out in order.

One thread at a time has files read into pinned memory and starts the copies, on a stream of its own. One or
two threads solve, each on its own stream: what is small and slow in one batch, such as the factors' diagonal
blocks, runs beside the other's products. Every batch is solved by the same calls whichever thread has it.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, groupby
from types import TracebackType
from typing import Self

import torch

from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.quantize.gpu.batch_size import experts_in_a_row
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.transfer.device_memory import to_device, use_device
from moe4.quantize.transfer.ranks import Parcel
from moe4.quantize.transfer.reader import NUM_FILE_READERS, Stored

Solve = Callable[[list[int], list[dict[Part, Stored]]], list[Parcel]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """A batch on its way to the device."""

    experts: list[int]
    stored: list[dict[Part, Stored]]
    arrived: torch.cuda.Event | None


class Batches:
    """Gives out this rank's experts in order, while those that follow are read and solved.

    Memory of the device: for each solver what `solve` takes, and for each and one more a batch's weights as
    they are stored.
    """

    def __init__(self, bench: Workbench, experts: ExpertShape, solve: Solve, num_solvers: int = 1) -> None:
        self._bench, self._experts, self._solve = bench, experts, solve
        size = experts_in_a_row(experts, bench.ranks)
        numbers = bench.ranks.own_numbers(experts.num_experts, size)
        self._left = iter([numbers[start : start + size] for start in range(0, len(numbers), size)])
        self._num_ahead = num_solvers + 1
        self._files = self._threads("files", NUM_FILE_READERS)
        self._reader = self._threads("reader", 1)
        self._solvers = self._threads("solver", num_solvers)
        self._copies = _side_stream(bench.device, 0)
        self._stream_numbers = count(1)
        self._streams = threading.local()
        self._solved: deque[Future[dict[int, Parcel]]] = deque()
        self._ready: dict[int, Parcel] = {}

    def __enter__(self) -> Self:
        for _ in range(self._num_ahead):
            self._begin_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for threads in (self._solvers, self._reader, self._files):
            threads.shutdown(wait=True, cancel_futures=True)

    def take(self, expert: int) -> Parcel:
        """Return the expert that is next."""
        if not self._ready:
            self._ready = self._solved.popleft().result()
            self._begin_next()
        parcel = self._ready.pop(expert)
        for tensor in (*parcel.tensors.values(), *parcel.stored.values()):
            if tensor.is_cuda:  # it is another stream's: it must stay until what this one does with it ends
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return parcel

    def _threads(self, name: str, number: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            max_workers=number,
            thread_name_prefix=f"moe4-{name}",
            initializer=use_device,
            initargs=(self._bench.device,),
        )

    def _begin_next(self) -> None:
        experts = next(self._left, None)
        if experts is not None:
            read = self._reader.submit(self._read_batch, experts)
            self._solved.append(self._solvers.submit(self._solve_batch, read))

    def _read_batch(self, experts: list[int]) -> _Read:
        checkpoint, shape, device = self._bench.checkpoint, self._experts, self._bench.device
        pinned = device.type == "cuda"

        def read(names: list[str]) -> list[Stored]:
            return checkpoint.read_together(names, pinned=pinned)

        names = [name for expert in experts for name in shape.weight_names(expert)]
        groups = [list(group) for _, group in groupby(names, checkpoint.place)]
        with _on(self._copies):
            found = chain.from_iterable(self._files.map(read, groups))
            weights = [tuple(to_device(tensor, device) for tensor in stored) for stored in found]
        pieces = iter(weights)
        stored: list[dict[Part, Stored]] = [{part: next(pieces) for part in shape.parts} for _ in experts]
        arrived = self._copies.record_event() if self._copies else None
        return _Read(experts=experts, stored=stored, arrived=arrived)

    def _solve_batch(self, future: Future[_Read]) -> dict[int, Parcel]:
        read = future.result()
        stream = self._own_stream()
        with _on(stream):
            if stream is not None and read.arrived is not None:
                stream.wait_event(read.arrived)
                for tensor in (t for parts in read.stored for tensors in parts.values() for t in tensors):
                    tensor.record_stream(stream)
            parcels = self._solve(read.experts, read.stored)
        if stream is not None:
            stream.synchronize()
        return dict(zip(read.experts, parcels, strict=True))

    def _own_stream(self) -> torch.cuda.Stream | None:
        """Return the calling thread's stream."""
        if not hasattr(self._streams, "own"):
            self._streams.own = _side_stream(self._bench.device, next(self._stream_numbers))
        stream: torch.cuda.Stream | None = self._streams.own
        return stream


@cache
def _side_stream(device: torch.device, number: int) -> torch.cuda.Stream | None:
    """Return one of a GPU's streams, the same each time: what is allocated on a stream stays with it."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
