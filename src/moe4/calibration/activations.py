"""Hidden states at a layer boundary, in a file or in a device's memory, and the batches they are run in.

Tokens of all sequences lie one after another, [tokens, hidden]. A batch pads its sequences on the right:
under causal attention no real token ever sees padding, so no mask is needed, and what padding computes is
dropped.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moe4.files.durable import create_file
from moe4.machine.at_once import BATCH_TOKENS, RESIDENT_BYTES

MAPPED_AROUND_BYTES = 128 << 10  # that Linux may map with a page that is touched
PIECE_BYTES = 16 << 20
RESIDENT_PIECE_BYTES = 256 << 20


@dataclass(kw_only=True, slots=True)
class Traffic:
    """Bytes of activations that this process has read and written."""

    bytes_read: int = 0
    bytes_written: int = 0


TRAFFIC = Traffic()


class Activations(Protocol):
    """[rows, columns] of activations, wherever they lie."""

    shape: tuple[int, int]

    def read(self, rows: Tensor | slice) -> Tensor:
        """Return rows [n, columns], which the caller must not change."""
        ...

    def write(self, rows: Tensor | slice, values: Tensor) -> None:
        """Put values [n, columns], of any float dtype and device, into rows."""
        ...

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add values [n, columns] to rows, each of which is named once."""
        ...

    def is_finite(self) -> bool:
        """Say whether no value is NaN or Inf."""
        ...


class ResidentActivations:
    """A tensor [rows, columns] in a device's memory; what is read is there, too."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.shape = (values.shape[0], values.shape[1])

    def read(self, rows: Tensor | slice) -> Tensor:
        """Return rows [n, columns] on the device; those of a slice share memory with this."""
        if isinstance(rows, slice):
            return self.values[rows]
        return self.values.index_select(0, rows.to(self.values.device))

    def write(self, rows: Tensor | slice, values: Tensor) -> None:
        """Put values [n, columns], of any float dtype and device, into rows."""
        values = values.to(self.values.device, self.values.dtype)
        if isinstance(rows, slice):
            self.values[rows] = values
        else:
            self.values.index_copy_(0, rows.to(self.values.device), values)

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add values [n, columns] of the same dtype to rows, each of which is named once."""
        device = self.values.device
        self.values.index_add_(0, rows.to(device), values.to(device))

    def is_finite(self) -> bool:
        """Say whether no value is NaN or Inf."""
        return all(
            bool(torch.isfinite(self.values[rows]).all()) for rows in self.pieces(RESIDENT_PIECE_BYTES)
        )

    def pieces(self, piece_bytes: int) -> Iterator[slice]:
        """Yield the rows in order, at most so many bytes at a time, or one row."""
        yield from _row_pieces(self.shape, self.values.itemsize, piece_bytes)


class ActivationStore:
    """A file of [rows, columns], mapped; little of it is in memory at a time.

    The disk space is reserved when it is created, so that a full disk is an OSError and not a crash. `read`,
    `write` and `add` give the pages they touched back to the system as they go: what was written stays in the
    file, and the page cache keeps what it has room for.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: torch.dtype, *, create: bool) -> None:
        self.path, self.shape = path, shape
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if create:
            with os.fdopen(create_file(path), "wb") as file:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
        self._map = np.memmap(path, dtype=np.uint8, mode="r+", shape=(num_bytes,))
        self._tensor: Tensor = torch.from_numpy(self._map).view(dtype).view(shape)
        self._resident = 0

    def read(self, rows: Tensor | slice) -> Tensor:
        """Return rows [n, columns] in fresh memory."""
        if isinstance(rows, slice):
            values = self._tensor[rows].clone()
            self._touch(values.nbytes)
        else:
            values = torch.empty(len(rows), self.shape[1], dtype=self._tensor.dtype)
            for here in self._spread_rows(len(rows)):
                torch.index_select(self._tensor, 0, rows[here], out=values[here])
        TRAFFIC.bytes_read += values.nbytes
        return values

    def write(self, rows: Tensor | slice, values: Tensor) -> None:
        """Put values [n, columns], of any float dtype and device, into rows."""
        values = values.to("cpu", self._tensor.dtype)
        if isinstance(rows, slice):
            self._tensor[rows] = values
            self._touch(values.nbytes)
        else:
            for here in self._spread_rows(len(rows)):
                self._tensor[rows[here]] = values[here]
        TRAFFIC.bytes_written += values.nbytes

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add values [n, columns], of the store's dtype on the CPU, to rows."""
        for here in self._spread_rows(len(rows)):
            self._tensor.index_add_(0, rows[here], values[here])
        TRAFFIC.bytes_read += values.nbytes
        TRAFFIC.bytes_written += values.nbytes

    def pieces(self) -> Iterator[slice]:
        """Yield the rows in order, some MiB at a time."""
        yield from _row_pieces(self.shape, self._tensor.itemsize, PIECE_BYTES)

    def is_finite(self) -> bool:
        """Say whether no value is NaN or Inf."""
        return all(bool(torch.isfinite(self.read(rows)).all()) for rows in self.pieces())

    def sync(self) -> None:
        """Make the contents durable."""
        self._map.flush()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self._release()

    def _spread_rows(self, num_rows: int) -> Iterator[slice]:
        """Yield slices of so many rows that, wherever they lie, little of the file comes into memory."""
        each = self.shape[1] * self._tensor.itemsize + MAPPED_AROUND_BYTES
        step = RESIDENT_BYTES // each + 1
        for start in range(0, num_rows, step):
            here = slice(start, min(start + step, num_rows))
            yield here
            self._touch((here.stop - start) * each)

    def _touch(self, num_bytes: int) -> None:
        self._resident += num_bytes
        if self._resident > RESIDENT_BYTES < self._map.nbytes:
            self._release()

    def _release(self) -> None:
        base: Any = self._map.base
        base.madvise(mmap.MADV_DONTNEED)
        self._resident = 0


def _row_pieces(shape: tuple[int, int], itemsize: int, piece_bytes: int) -> Iterator[slice]:
    num_rows, columns = shape
    step = max(1, piece_bytes // (columns * itemsize))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some sequences, and where their tokens lie in a store."""

    rows: Tensor
    """int64 [batch, longest]: row of each token in the store; -1 for padding."""

    @cached_property
    def is_token(self) -> Tensor:
        """bool [batch, longest]: False for padding."""
        return self.rows >= 0

    def gather(self, store: Activations, device: torch.device) -> Tensor:
        """Return [batch, longest, hidden] in fresh memory; padding repeats row 0."""
        return store.read(self.rows.clamp(min=0).flatten()).view(*self.rows.shape, -1).to(device)

    @cached_property
    def is_full(self) -> bool:
        """Whether there is no padding."""
        return bool(self.is_token.all())

    @cached_property
    def token_rows(self) -> Tensor:
        """int64 [tokens]: the store's rows of the real tokens, in the order `select` gives."""
        return self.rows[self.is_token]

    def select(self, values: Tensor) -> Tensor:
        """Return the real tokens' values [tokens, ...] of [batch * longest, ...] or [batch, longest, ...]."""
        flat = values.reshape(self.rows.numel(), *values.shape[values.ndim - 1 :])
        if self.is_full:
            return flat
        return flat[self.is_token.flatten().to(values.device)]


def make_batches(lengths: Sequence[int], batch_tokens: int = BATCH_TOKENS) -> Iterator[Batch]:
    """Yield batches of sequences of like length, of at most `batch_tokens` with padding (or one sequence)."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    position = 0
    while position < len(order):
        longest = lengths[order[position]]
        size = max(1, batch_tokens // longest)
        chosen = order[position : position + size]
        position += size
        rows = torch.full((len(chosen), longest), -1, dtype=torch.int64)
        for row, sequence in zip(rows, chosen, strict=True):
            row[: lengths[sequence]] = torch.arange(starts[sequence], starts[sequence + 1])
        yield Batch(rows=rows)
