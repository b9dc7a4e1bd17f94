"""Several processes on one run: `torchrun --nproc-per-node N -m moe4 quantize ...` (docs/processes.md).

Rank 0 is the only one that writes. Work is numbered; number i is done by rank i mod size, and rank 0 takes
the results in the order of the numbers, whatever the number of ranks: so sums have one order, and a release
has the same bytes.
"""

import datetime
import json
import os
import signal
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
from moe4.strict_json import JsonObject

TIMEOUT = datetime.timedelta(minutes=30)  # of one wait for another rank; an expert takes minutes at most
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """One piece of finished work, on its way to rank 0 or from it."""

    facts: JsonObject = field(default_factory=dict)
    """A typed value as plain JSON types; who takes it makes one of them again."""
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Ranks:
    """The processes of a run; one of them unless a launcher says otherwise."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.device = torch.device("cpu")
        self._store: Any = None
        self._pending: list[Any] = []

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

    def spread(self, count: int, work: Callable[[int], Parcel]) -> Iterator[tuple[int, Parcel]]:
        """Do `work` for 0..count-1 over the ranks; on rank 0 yield (number, result) in order, else nothing.

        A rank works ahead of rank 0 by at most one result. Raises RankError when a rank is lost.
        """
        for number in range(count):
            owner = number % self.size
            if self.is_first:
                yield number, work(number) if owner == 0 else self._receive(owner)
            elif owner == self.rank:
                self._send(work(number))
        self._wait()

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
                header = _encode_header(parcel)
                length[0] = header.numel()
            distributed.broadcast(length, 0)
            if not self.is_first:
                header = torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(header, 0)
            if parcel is None or not self.is_first:
                parcel = self._empty_parcel(header)
            for tensor in parcel.tensors.values():
                if tensor.numel():
                    distributed.broadcast(tensor.contiguous().view(-1).view(torch.uint8), 0)
        except RuntimeError as error:
            raise _lost("a rank", error) from None
        return parcel

    def _send(self, parcel: Parcel) -> None:
        from torch import distributed

        self._wait()
        header = _encode_header(parcel)
        pieces = [torch.tensor([header.numel()]), header]
        pieces += [t.contiguous().view(-1).view(torch.uint8) for t in parcel.tensors.values() if t.numel()]
        try:
            # The pieces are kept until they are gone.
            self._pending = [(distributed.isend(piece, 0), piece) for piece in pieces]
        except RuntimeError as error:
            raise _lost("rank 0", error) from None

    def _wait(self) -> None:
        try:
            for request, _ in self._pending:
                request.wait()
        except RuntimeError as error:
            raise _lost("rank 0", error) from None
        self._pending = []

    def _receive(self, owner: int) -> Parcel:
        from torch import distributed

        try:
            length = torch.zeros(1, dtype=torch.int64)
            distributed.recv(length, owner)
            header = torch.empty(int(length), dtype=torch.uint8)
            distributed.recv(header, owner)
            parcel = self._empty_parcel(header)
            for tensor in parcel.tensors.values():
                if tensor.numel():
                    distributed.recv(tensor.view(-1).view(torch.uint8), owner)
        except RuntimeError as error:
            raise _lost(f"rank {owner}", error) from None
        return parcel

    def _empty_parcel(self, header: Tensor) -> Parcel:
        """Return a parcel with room for the tensors that a header announces."""
        data = json.loads(bytes(header.tolist()))
        tensors = {}
        for name, dtype, shape, on_device in data["tensors"]:
            device = self.device if on_device else torch.device("cpu")
            tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        return Parcel(facts=data["facts"], tensors=tensors)


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


def _encode_header(parcel: Parcel) -> Tensor:
    tensors = [
        (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.device.type != "cpu")
        for name, tensor in parcel.tensors.items()
    ]
    data = json.dumps({"facts": parcel.facts, "tensors": tensors}).encode()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _lost(who: str, error: RuntimeError) -> RankError:
    return RankError(f"{who} died or stopped answering ({_first_line(error)}); {_again()}")


def _raise_terminated(*_: object) -> None:
    raise RankError(f"the launcher ended this run because one of its processes died; {_again()}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _again() -> str:
    return f"the committed layers are kept: run again with {argument('resume', True)}, on any number of ranks"
