"""The threads that check tensors, and how much of the release they have checked."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from moe4.machine.memory import available_memory_bytes
from moe4.machine.processors import num_usable
from moe4.quantize.transfer.device_memory import free_bytes, use_device

MOST_THREADS = 64

Item = TypeVar("Item")
Progress = Callable[[int, int], None]
"""Hears how many bytes of how many have been checked, from any thread."""


class ByteCount:
    """Adds up what threads have checked, and tells it."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count bytes as checked."""
        with self._lock:
            self._done = min(self._total, self._done + num_bytes)
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)


def spread(
    check: Callable[[Item], list[str]], items: Sequence[Item], item_bytes: int, device: torch.device
) -> list[str]:
    """Return every item's problems in the items' order, checked several at a time, each in `item_bytes`."""
    problems: list[str] = []
    with ThreadPoolExecutor(
        num_threads(item_bytes, device), initializer=use_device, initargs=(device,)
    ) as threads:
        try:
            for found in threads.map(check, items):
                problems.extend(found)
        except BaseException:  # Ctrl-C, too: the rest of the items need not be checked first
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return problems


def num_threads(item_bytes: int, device: torch.device) -> int:
    """Return how many threads check at a time: one a processor, if half the free memory has room for them."""
    free = free_bytes(device) if device.type == "cuda" else available_memory_bytes()
    return max(1, min(num_usable(), free // 2 // max(1, item_bytes), MOST_THREADS))


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Have each operation on tensors run on its caller's thread alone: there are threads enough."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
