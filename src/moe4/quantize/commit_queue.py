"""Commits that happen behind the back of the layer that follows, one at a time and in order."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from moe4.quantize.gpu_memory import use_device


def commits_behind(device: torch.device) -> bool:
    """Say whether a layer is hashed, written and synced while the next one is computed.

    That is so where a GPU computes. On a CPU it would take processors and memory from the computation.
    """
    return device.type == "cuda"


class CommitQueue:
    """Runs commits at once, or in a thread that is at most one behind.

    When an error ends the run, a commit that has begun is finished: what it has to say is true.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = None
        if commits_behind(device):
            self._thread = ThreadPoolExecutor(
                max_workers=1, thread_name_prefix="moe4-commit", initializer=use_device, initargs=(device,)
            )
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown(wait=True)

    def put(self, commit: Callable[[], None], *, may_wait: bool) -> None:
        """Run a commit after those before it; return when it is done unless it `may_wait`.

        Raises what the one before it raised.
        """
        self.wait()
        if self._thread is None or not may_wait:
            commit()
        else:
            self._pending = self._thread.submit(commit)

    def wait(self) -> None:
        """Wait for the last commit; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
