"""Commits that happen behind the back of the layers that follow, sealed in order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from moe4.quantize.transfer.device_memory import use_device

MOST_BEHIND = 3  # layers that are hashed, written and synced at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What makes a layer durable, and then known to be."""

    make_durable: Callable[[], None]
    seal: Callable[[], None]


def commits_behind(device: torch.device) -> bool:
    """Say whether a layer is hashed, written and synced while the next ones are computed.

    That is so where a GPU computes. On a CPU it would take processors and memory from the computation.
    """
    return device.type == "cuda"


class CommitQueue:
    """Runs commits at once, or in threads that are at most MOST_BEHIND layers behind.

    A commit has two parts. What makes a layer's files durable runs beside that of other layers: one thread
    hashes more slowly than several GPUs compute. What seals the layer runs after the seal of the one before,
    so that the journal has the layers in order; where a commit fails, none after it is sealed.

    When an error ends the run, the commits that were put are finished: what they have to say is true.
    """

    def __init__(self, device: torch.device) -> None:
        self._threads = None
        if commits_behind(device):
            self._threads = ThreadPoolExecutor(
                max_workers=MOST_BEHIND,
                thread_name_prefix="moe4-commit",
                initializer=use_device,
                initargs=(device,),
            )
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            if self._threads is not None:
                self._threads.shutdown(wait=True)

    def put(self, commit: Commit, *, may_wait: bool) -> None:
        """Run a commit after those before it; return when it is done unless it `may_wait`.

        Raises what one before it raised.
        """
        while self._pending and (not may_wait or self._pending[0].done() or self._is_full()):
            self._pending.popleft().result()
        if self._threads is None or not may_wait:
            commit.make_durable()
            commit.seal()
            return
        before = self._pending[-1] if self._pending else None
        self._pending.append(self._threads.submit(_run, commit, before))

    def wait(self) -> None:
        """Wait for all commits; raises what the first that failed raised."""
        while self._pending:
            self._pending.popleft().result()

    def _is_full(self) -> bool:
        return len(self._pending) >= MOST_BEHIND


def _run(commit: Commit, before: Future[None] | None) -> None:
    commit.make_durable()
    if before is not None:
        before.result()
    commit.seal()
