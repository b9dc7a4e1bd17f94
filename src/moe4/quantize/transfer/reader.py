"""Read the source once: an expert while the one before is solved, the rest of a layer as it is built."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from moe4.checkpoint.shard import ShardWriter
from moe4.checkpoint.source import Checkpoint
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.quantize.planning.release_plan import ShardPlan
from moe4.quantize.transfer.device_memory import to_device, to_host, use_device

NUM_FILE_READERS = 8  # one thread reads 3.7 GB/s from the page cache into pinned memory, eight 26

Stored = tuple[Tensor, ...]  # what Checkpoint.read gives


class ExpertReader:
    """Hands out experts in a given order; a thread reads one expert ahead.

    Peak memory: two experts as they are stored.
    """

    def __init__(self, checkpoint: Checkpoint, experts: ExpertShape, numbers: Iterable[int]) -> None:
        self._checkpoint, self._experts = checkpoint, experts
        self._left = iter(numbers)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="moe4-reader")
        self._next: tuple[int, Future[dict[Part, Stored]]] | None = None

    def __enter__(self) -> Self:
        self._read_ahead()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def take(self, expert: int) -> dict[Part, Stored]:
        """Return the expert that is next, as stored, and have the one after it read."""
        assert self._next is not None
        number, future = self._next
        assert number == expert, f"expert {expert} was asked for out of order"
        parts = future.result()
        self._read_ahead()
        return parts

    def _read_ahead(self) -> None:
        number = next(self._left, None)
        self._next = None if number is None else (number, self._thread.submit(self._read, number))

    def _read(self, expert: int) -> dict[Part, Stored]:
        stored = self._checkpoint.read_together(self._experts.weight_names(expert))
        return dict(zip(self._experts.parts, stored, strict=True))


class Prefetcher:
    """Reads tensors before they are asked for, into memory that a GPU copies from at full speed.

    They lie in the host's memory until they are taken.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._futures: dict[str, Future[Stored]] = {}
        self._layer = -1

    def begin(self, layer: int, names: Iterable[str]) -> None:
        """Begin to read what a layer has beside its routed experts, unless that has begun already."""
        if layer == self._layer:
            return
        self._layer = layer
        threads = ThreadPoolExecutor(
            max_workers=NUM_FILE_READERS,
            thread_name_prefix="moe4-files",
            initializer=use_device,
            initargs=(self._device,),
        )
        self._futures = {name: threads.submit(self.read, name) for name in names}
        threads.shutdown(wait=False)

    def take(self, name: str) -> Stored:
        """Return a tensor as it is stored, and forget it."""
        future = self._futures.pop(name, None)
        return self.read(name) if future is None else future.result()

    def read(self, name: str) -> Stored:
        """Read a tensor now."""
        return self._checkpoint.read(name, pinned=self._device.type == "cuda")


class LayerReader:
    """Reads what a layer has beside its routed experts; what is copied is written as it is read.

    Quantized tensors are decoded on `device`, which changes no bit. Only rank 0 has a writer. What is
    loaded is put into `keep`, as it is stored, and taken from `ahead` where it was read before.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: ShardPlan,
        writer: ShardWriter | None,
        device: torch.device,
        keep: dict[str, Stored] | None = None,
        ahead: Prefetcher | None = None,
    ) -> None:
        self._checkpoint, self._plan, self._writer, self._device = checkpoint, plan, writer, device
        self._keep = keep
        self._quantized = {weight.name for stage in plan.linear_stages for weight in stage}
        self._kept: dict[str, Stored] = {}
        self._ahead = ahead or Prefetcher(checkpoint, device)

    def load(self, name: str) -> Tensor:
        """Return a tensor as `Checkpoint.load` does, on the device."""
        stored = self._kept.pop(name, None) or self._read(name)
        tensor = self._decode(name, stored)
        if self._writer is not None and name not in self._quantized and self._writer.lacks(name):
            encoded = self._checkpoint.is_encoded(name)
            self._writer.write(name, self._on_host(tensor.to(torch.bfloat16)) if encoded else stored[0])
        return tensor

    def load_and_keep(self, name: str) -> Tensor:
        """The same; a weight that is to be quantized is kept as stored for the next `load`."""
        if name not in self._quantized:
            return self.load(name)
        stored = self._kept[name] = self._read(name)
        return self._decode(name, stored)

    def _read(self, name: str) -> Stored:
        stored = self._ahead.take(name)
        if self._keep is not None:
            self._keep[name] = stored
        return stored

    def _decode(self, name: str, stored: Stored) -> Tensor:
        return self._checkpoint.decode(name, tuple(to_device(piece, self._device) for piece in stored))

    def _on_host(self, tensor: Tensor) -> Tensor:
        host = to_host(tensor)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return host

    def copy_rest(self) -> None:
        """Copy what has not been asked for, quantized tensors as BF16. Raises TensorError on NaN or Inf."""
        writer = self._writer
        if writer is None:
            return
        for name in self._plan.copied:
            if not writer.lacks(name):
                continue
            if self._checkpoint.is_encoded(name):
                self.load(name)
            else:
                writer.write_pieces(name, self._checkpoint.iterate(name))
