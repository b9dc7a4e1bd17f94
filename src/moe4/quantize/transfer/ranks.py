"""Several processes on one run: `torchrun --nproc-per-node N -m moe4 quantize ...` (docs/processes.md).

Rank 0 is the only one that writes. Work is numbered; the ranks take turns at it, some numbers at a time, and
rank 0 takes the results in the order of the numbers, whatever the number of ranks: so sums have one order,
and a release has the same bytes.
"""

import datetime
import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe4.arguments import argument
from moe4.errors import RankError
from moe4.machine.allocator import return_large_blocks
from moe4.machine.processors import num_usable
from moe4.quantize.transfer.device_memory import to_host, use_device
from moe4.strict_json import JsonObject

TIMEOUT = datetime.timedelta(minutes=30)  # of one wait for another rank; an expert takes minutes at most
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """One piece of finished work, on its way to rank 0 or from it."""

    facts: JsonObject = field(default_factory=dict)
    """A typed value as plain JSON types; who takes it makes one of them again."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)
    """What goes into the release as it is. Rank 0 has it in the host's memory, whichever rank made it."""


class Ranks:
    """The processes of a run; one of them unless a launcher says otherwise."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.device = torch.device("cpu")
        self._store: Any = None
        self._pending: list[Any] = []

    @property
    def receives_ahead(self) -> bool:
        """Whether a thread of rank 0 receives what comes next; on a CPU, memory is bounded without it."""
        return self.device.type == "cuda"

    @staticmethod
    def from_environment() -> "Ranks":
        """Return the ranks a launcher set up in the environment, not yet connected."""
        if not all(os.environ.get(name) for name in LAUNCHER_VARIABLES):
            return Ranks()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)), local_size)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and reports."""
        return self.rank == 0

    def connect(self, *, gpus: bool) -> None:
        """Find the other ranks; tensors on a GPU will travel by NCCL if `gpus`, all others by gloo."""
        if self.size == 1:
            return
        from torch import distributed
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        try:
            self._store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
            store = PrefixStore("moe4", self._store)
            distributed.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise RankError(f"the {self.size} ranks did not find each other: {_first_line(error)}") from None

    def use(self, device: torch.device) -> None:
        """Work on a device from now on; every rank comes here.

        On GPUs all ranks join NCCL's communicator before any two of them speak, as `batch_isend_irecv` asks.
        """
        self.device = device
        if self.size > 1 and device.type == "cuda":
            from torch import distributed

            self.meet()  # over gloo, which sees at once that a rank is lost
            distributed.broadcast(torch.zeros(1, device=device, dtype=torch.float32), 0)
            torch.cuda.synchronize(device)

    def close(self) -> None:
        """Part from the other ranks, after all has gone well."""
        if self.size > 1:
            from torch import distributed

            distributed.destroy_process_group()

    def may_report(self) -> bool:
        """Say whether an error is this rank's to print: it is for the first that asks, and for no other."""
        if self._store is None:
            return True
        try:
            return int(self._store.add("moe4-error", 1)) == 1
        except RuntimeError:  # the store went down with its process
            return True

    def meet(self) -> None:
        """Wait until rank 0 is here too."""
        self.share(Parcel())

    def spread(
        self, count: int, work: Callable[[int], Parcel], at_once: int = 1
    ) -> Iterator[tuple[int, Parcel]]:
        """Do `work` for 0..count-1 over the ranks; on rank 0 yield (number, result) in order, else nothing.

        A rank does `at_once` numbers in a row and sends their results together. It works ahead of rank 0 by
        at most one such message, or two where rank 0 receives ahead. Raises RankError when a rank is lost.
        """
        spans = [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]
        if self.is_first:
            yield from self._collect(spans, work)
            return
        for turn, numbers in enumerate(spans):
            if self._owner(turn) == self.rank:
                self._send([work(number) for number in numbers])
        self._wait()

    def own_numbers(self, count: int, at_once: int = 1) -> list[int]:
        """Return which of the numbers 0..count-1 of `spread` are this rank's."""
        return [number for number in range(count) if self._owner(number // at_once) == self.rank]

    def _owner(self, turn: int) -> int:
        """Return the rank that has a turn.

        Where rank 0 receives ahead it sits out every third round. Beside the solvers it then adds and writes
        what all ranks make; on two H200s they needed 0.21 s there for what took the other rank 0.13 s.
        """
        if not self.receives_ahead:
            return turn % self.size
        place = turn % (3 * self.size - 1)
        return place % self.size if place < 2 * self.size else place - 2 * self.size + 1

    def _collect(self, spans: list[range], work: Callable[[int], Parcel]) -> Iterator[tuple[int, Parcel]]:
        """Do rank 0's share, and yield every rank's results in order."""
        owners = [self._owner(turn) for turn in range(len(spans))]
        arrivals: Iterator[list[Parcel]] = map(self._receive, filter(None, owners))
        if self.size > 1 and self.receives_ahead:
            arrivals = received_ahead(arrivals, self.device)
        for numbers, owner in zip(spans, owners, strict=True):
            if owner == 0:
                yield from ((number, work(number)) for number in numbers)
            else:
                yield from zip(numbers, next(arrivals), strict=True)

    def sum_in_order(self, count: int, part: Callable[[int], Parcel]) -> Parcel | None:
        """Return the sum over 0..count-1 of every tensor and number in `part`, on every rank.

        The parts are computed over the ranks and added in their order. None if there are none.
        """
        total: Parcel | None = None
        for _, parcel in self.spread(count, part):
            if total is None:
                total = parcel
                continue
            for name, tensor in parcel.tensors.items():
                total.tensors[name].add_(tensor)
            for name, value in parcel.facts.items():
                total.facts[name] += value
        return self.share(total) if count else None

    def share(self, parcel: Parcel | None) -> Parcel:
        """Return rank 0's parcel on every rank; what the others give is not looked at."""
        if self.size == 1:
            assert parcel is not None
            return parcel
        from torch import distributed

        try:
            length = torch.zeros(1, dtype=torch.int64)
            header = torch.empty(0, dtype=torch.uint8)
            if self.is_first:
                assert parcel is not None
                header = _encode_headers([parcel])
                length[0] = header.numel()
            distributed.broadcast(length, 0)
            if not self.is_first:
                header = torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(header, 0)
            if parcel is None or not self.is_first:
                parcel = self._empty_parcel(json.loads(bytes(header.tolist()))[0])
            for tensor in parcel.tensors.values():
                if tensor.numel():
                    distributed.broadcast(tensor.contiguous().view(-1).view(torch.uint8), 0)
        except RuntimeError as error:
            raise _lost("a rank", error) from None
        return parcel

    def _send(self, parcels: list[Parcel]) -> None:
        from torch import distributed

        self._wait()
        header = _encode_headers(parcels)
        on_host, on_device = _by_place([t for parcel in parcels for t in _tensors_of(parcel)])
        try:
            # The pieces are kept until they are gone.
            for piece in (torch.tensor([header.numel()], dtype=torch.int64), header, *on_host):
                self._pending.append((distributed.isend(piece, 0), piece))
            if on_device:
                sends = [distributed.P2POp(distributed.isend, piece, 0) for piece in on_device]
                requests = distributed.batch_isend_irecv(sends)
                self._pending += [(request, on_device) for request in requests]
        except RuntimeError as error:
            raise _lost("rank 0", error) from None

    def _wait(self) -> None:
        try:
            for request, _ in self._pending:
                request.wait()
        except RuntimeError as error:
            raise _lost("rank 0", error) from None
        self._pending = []

    def _receive(self, owner: int) -> list[Parcel]:
        from torch import distributed

        try:
            length = torch.zeros(1, dtype=torch.int64)
            distributed.recv(length, owner)
            header = torch.empty(int(length), dtype=torch.uint8)
            distributed.recv(header, owner)
            parcels = [self._empty_parcel(data) for data in json.loads(bytes(header.tolist()))]
            on_host, on_device = _by_place([t for parcel in parcels for t in _tensors_of(parcel)])
            for piece in on_host:
                distributed.recv(piece, owner)
            if on_device:
                receipts = [distributed.P2POp(distributed.irecv, piece, owner) for piece in on_device]
                for request in distributed.batch_isend_irecv(receipts):
                    request.wait()
        except RuntimeError as error:
            raise _lost(f"rank {owner}", error) from None
        return [self._stored_on_host(parcel) for parcel in parcels] if on_device else parcels

    def _stored_on_host(self, parcel: Parcel) -> Parcel:
        """Return a parcel with what is stored on its way to the host; it is there when the stream is done."""
        stored = {name: to_host(tensor) for name, tensor in parcel.stored.items()}
        return Parcel(facts=parcel.facts, tensors=parcel.tensors, stored=stored)

    def _empty_parcel(self, data: JsonObject) -> Parcel:
        """Return a parcel with room for the tensors that a header announces."""
        rooms: list[dict[str, Tensor]] = []
        for kind in ("tensors", "stored"):
            room = {}
            for name, dtype, shape, on_device in data[kind]:
                device = self.device if on_device else torch.device("cpu")
                room[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            rooms.append(room)
        return Parcel(facts=data["facts"], tensors=rooms[0], stored=rooms[1])


def received_ahead(parcels: Iterator[list[Parcel]], device: torch.device) -> Iterator[list[Parcel]]:
    """Yield what an iterator of received parcels gives; a thread has the next ones ready, and no more.

    On a GPU the thread has its own stream, whose work on parcels has ended before they are yielded.
    """
    ready: queue.Queue[list[Parcel] | BaseException | None] = queue.Queue()
    room = threading.Semaphore()
    if device.type == "cuda":
        parcels = _on_own_stream(parcels, device, torch.cuda.current_stream(device))

    def receive() -> None:
        use_device(device)
        try:
            while True:
                room.acquire()
                received = next(parcels, None)
                ready.put(received)
                if received is None:
                    return
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=receive, name="moe4-receiver", daemon=True).start()

    def take() -> Iterator[list[Parcel]]:
        while (found := ready.get()) is not None:
            room.release()
            if isinstance(found, BaseException):
                raise found
            yield found

    return take()


def _on_own_stream(
    parcels: Iterator[list[Parcel]], device: torch.device, reader: torch.cuda.Stream
) -> Iterator[list[Parcel]]:
    """Receive parcels on a stream of their own, and give them out when it is done, to one that reads them."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    while True:
        with torch.cuda.stream(stream):
            received = next(parcels, None)
        if received is None:
            return
        stream.synchronize()
        for tensor in (tensor for parcel in received for tensor in _tensors_of(parcel)):
            if tensor.is_cuda:
                tensor.record_stream(reader)
        yield received


def own_process(ranks: Ranks) -> None:
    """Set up a process that does nothing but a run: the command's, or a script's that says so.

    Large blocks of memory go back to the system as soon as they are free, which the bound on memory counts
    with. Among several ranks SIGTERM, by which a launcher ends the others when one has died, is a RankError.
    """
    return_large_blocks()
    if ranks.size > 1:
        signal.signal(signal.SIGTERM, _raise_terminated)


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Give torch back, in the end, the number of threads that it has now."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_per_rank(ranks: Ranks) -> int:
    """Return how many threads each rank of this machine has, if they share its cores equally.

    One process alone has what torch gives it, which OMP_NUM_THREADS can change. torchrun sets that to 1 for
    several, so it is not looked at there.
    """
    if ranks.size == 1:
        return torch.get_num_threads()
    return max(1, num_usable() // ranks.local_size)


def _tensors_of(parcel: Parcel) -> list[Tensor]:
    return [*parcel.tensors.values(), *parcel.stored.values()]


def _by_place(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the bytes of the tensors that have any: of those in the host's memory, and of those on a GPU."""
    pieces = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors if tensor.numel()]
    return [piece for piece in pieces if not piece.is_cuda], [piece for piece in pieces if piece.is_cuda]


def _encode_headers(parcels: list[Parcel]) -> Tensor:
    """Return the facts of parcels, and the names, dtypes, shapes and places of their tensors, as bytes."""

    def described(tensors: dict[str, Tensor]) -> list[list[Any]]:
        return [
            [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.is_cuda]
            for name, tensor in tensors.items()
        ]

    headers = [
        {"facts": parcel.facts, "tensors": described(parcel.tensors), "stored": described(parcel.stored)}
        for parcel in parcels
    ]
    return torch.frombuffer(bytearray(json.dumps(headers).encode()), dtype=torch.uint8)


def _lost(who: str, error: RuntimeError) -> RankError:
    return RankError(f"{who} died or stopped answering ({_first_line(error)}); {_again()}")


def _raise_terminated(*_: object) -> None:
    raise RankError(f"the launcher ended this run because one of its processes died; {_again()}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _again() -> str:
    return f"the committed layers are kept: run again with {argument('resume', True)}, on any number of ranks"
