"""A cache of experts in memory of its own, filled with direct reads; the least frequently used make room."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe4.errors import CheckpointError, ServeError
from moe4.kernels.table import ALIGNMENTS
from moe4.machine.disk import BLOCK_BYTES, NUM_READERS, READ_BYTES, DirectFile, allocate_for_reads
from moe4.units import format_bytes
from moe4.vllm_plugin.loader.layer import ExpertLayout, MappedLayer
from moe4.vllm_plugin.loader.supply import chosen_experts

# A use counts half after so many fetches of a layer on average: what was in fashion must not stay for ever.
HALF_LIFE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Whole blocks of a file and where in a slot they go."""

    path: Path
    offset: int
    num_bytes: int
    slot_offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertReadPlan:
    """How one expert is read: its windows, and where in the slot its six matrices begin then."""

    windows: tuple[Window, ...]
    starts: tuple[int, ...]
    num_bytes: int


def plan_expert(layout: ExpertLayout, layer: MappedLayer, slot: int) -> ExpertReadPlan:
    """Return how to read the expert `slot` of a layer. Raises CheckpointError if it must be converted."""
    blocks: list[tuple[Path, int, int]] = []
    places = []
    for column, (stored, skip) in enumerate(zip(layer.stored[slot], layout.skip_bytes(), strict=True)):
        if stored.offset % ALIGNMENTS[column] or stored.spec.dtype not in ("I32", "BF16"):
            raise CheckpointError(
                f"{stored.spec.name} in {stored.path} cannot be used in place ({stored.spec.dtype} at byte "
                f"{stored.offset}): leave the expert cache off"
            )
        places.append((stored.path, stored.offset + skip))
        whole = column in (2, 5)  # of down, a rank's columns lie all over the matrix
        start = stored.offset if whole else stored.offset + skip
        end = start + stored.spec.num_bytes * (layout.inter if whole else layout.share) // layout.inter
        blocks.append((stored.path, start // BLOCK_BYTES, -(-end // BLOCK_BYTES)))
    windows: list[Window] = []
    for path, first, end in sorted(blocks):
        last = windows[-1] if windows else None
        if last is not None and last.path == path and last.offset + last.num_bytes >= first * BLOCK_BYTES:
            num_bytes = max(last.num_bytes, end * BLOCK_BYTES - last.offset)
            windows[-1] = Window(
                path=path, offset=last.offset, num_bytes=num_bytes, slot_offset=last.slot_offset
            )
        else:
            place = last.slot_offset + last.num_bytes if last is not None else 0
            windows.append(
                Window(
                    path=path,
                    offset=first * BLOCK_BYTES,
                    num_bytes=(end - first) * BLOCK_BYTES,
                    slot_offset=place,
                )
            )
    starts = []
    for path, offset in places:
        window = next(w for w in windows if w.path == path and w.offset <= offset < w.offset + w.num_bytes)
        starts.append(window.slot_offset + offset - window.offset)
    return ExpertReadPlan(
        windows=tuple(windows),
        starts=tuple(starts),
        num_bytes=windows[-1].slot_offset + windows[-1].num_bytes,
    )


class ExpertCache:
    """Slots in memory, each for an expert of any layer. Memory: the budget, taken as slots are filled."""

    def __init__(
        self, layers: Sequence[tuple[ExpertLayout, MappedLayer]], budget_bytes: int, top_k: int
    ) -> None:
        """Plan how each expert is read. Raises ServeError if the budget cannot hold one token's experts."""
        self._plans = [
            [plan_expert(layout, layer, slot) for slot in range(len(layer.stored))]
            for layout, layer in layers
        ]
        self.slot_bytes = max(plan.num_bytes for plans in self._plans for plan in plans)
        self.num_slots = min(budget_bytes // self.slot_bytes, sum(map(len, self._plans)))
        if self.num_slots < top_k:
            raise ServeError(
                f"an expert cache of {format_bytes(budget_bytes)} holds {self.num_slots} experts of "
                f"{format_bytes(self.slot_bytes)}, and a token needs {top_k} at once: give it at least "
                f"{format_bytes(top_k * self.slot_bytes)}"
            )
        self._memory = allocate_for_reads(self.num_slots * self.slot_bytes, huge_pages=True)
        self._bytes = memoryview(self._memory)
        self._address = int(np.frombuffer(self._memory, dtype=np.uint8).ctypes.data)
        paths = {window.path for plans in self._plans for plan in plans for window in plan.windows}
        self._files = {path: DirectFile(path) for path in paths}
        self._pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="moe4-read")
        self._tables = [torch.zeros(len(plans), 6, dtype=torch.int64) for plans in self._plans]
        self._slot_of: dict[tuple[int, int], int] = {}
        self._holds: list[tuple[int, int] | None] = [None] * self.num_slots
        self._uses = np.zeros((len(self._plans), max(map(len, self._plans))))
        self._last_use = np.zeros(self.num_slots, dtype=np.int64)
        self._clock = 0
        self.num_hits = 0
        self.num_misses = 0
        self.bytes_read = 0

    @property
    def num_bytes(self) -> int:
        """The memory that it takes when it is full."""
        return int(self.num_slots * self.slot_bytes)

    def split(self, layer: int, topk_ids: Tensor) -> list[Tensor]:
        """Return the ids in parts of at most as many experts as there are slots."""
        experts = chosen_experts(topk_ids)
        if len(experts) <= self.num_slots:
            return [topk_ids]
        parts = []
        for first in range(0, len(experts), self.num_slots):
            part = torch.tensor(experts[first : first + self.num_slots], dtype=topk_ids.dtype)
            parts.append(torch.where(torch.isin(topk_ids, part), topk_ids, -1))
        return parts

    def fetch(self, layer: int, topk_ids: Tensor) -> Tensor:
        """Return the table after reading what is missing. Raises CheckpointError where a file ends."""
        experts = chosen_experts(topk_ids)
        self._clock += 1
        if self._clock % (HALF_LIFE * len(self._plans)) == 0:
            self._uses /= 2
        self._uses[layer, experts] += 1
        missing = [expert for expert in experts if (layer, expert) not in self._slot_of]
        self.num_hits += len(experts) - len(missing)
        self.num_misses += len(missing)
        for expert in experts:
            if (layer, expert) in self._slot_of:
                self._last_use[self._slot_of[layer, expert]] = self._clock
        if missing:
            self._read(layer, missing, self._make_room(layer, set(experts), len(missing)))
        return self._tables[layer]

    def _make_room(self, layer: int, needed: set[int], count: int) -> list[int]:
        """Return `count` slots: empty ones, then those least used, the longest ago first."""
        ranked = []
        for slot, held in enumerate(self._holds):
            if held is None:
                ranked.append((-1.0, 0, slot))
            elif held[0] != layer or held[1] not in needed:
                ranked.append((float(self._uses[held]), int(self._last_use[slot]), slot))
        slots = [slot for _, _, slot in sorted(ranked)[:count]]
        for slot in slots:
            held = self._holds[slot]
            if held is not None:
                del self._slot_of[held]
                self._holds[slot] = None
        return slots

    def _read(self, layer: int, experts: list[int], slots: list[int]) -> None:
        """Fill slots with experts, all pieces of all of them at once."""
        reads = []
        for expert, slot in zip(experts, slots, strict=True):
            for window in self._plans[layer][expert].windows:
                for start in range(0, window.num_bytes, READ_BYTES):
                    size = min(READ_BYTES, window.num_bytes - start)
                    place = slot * self.slot_bytes + window.slot_offset + start
                    target = self._bytes[place : place + size]
                    reads.append(
                        self._pool.submit(self._files[window.path].read, window.offset + start, target)
                    )
                    self.bytes_read += size
        for read in reads:
            read.result()
        for expert, slot in zip(experts, slots, strict=True):
            base = self._address + slot * self.slot_bytes
            starts = self._plans[layer][expert].starts
            self._tables[layer][expert] = torch.tensor([base + start for start in starts], dtype=torch.int64)
            self._slot_of[layer, expert] = slot
            self._holds[slot] = (layer, expert)
            self._last_use[slot] = self._clock


class LayerOfCache:
    """One layer's view of the cache."""

    def __init__(self, cache: ExpertCache, layer: int) -> None:
        self._cache, self._layer = cache, layer

    def split(self, topk_ids: Tensor) -> list[Tensor]:
        """Return the ids in parts of at most as many experts as there are slots."""
        return self._cache.split(self._layer, topk_ids)

    def fetch(self, topk_ids: Tensor) -> Tensor:
        """Return the layer's table after reading what is missing."""
        return self._cache.fetch(self._layer, topk_ids)
