"""Processes of vLLM on a CPU sleep while they wait for one another.

vLLM 0.32's processes exchange steps through shared memory. A reader polls it in a loop for a second after it
last read something, so the scheduler's process takes a whole processor during every step, which it then has
to share with the threads that compute it. A writer also announces each message on a socket, for readers that
have given up polling; but of two messages within a millisecond ZeroMQ drops the second one's announcement. So
here a reader waits for an announcement from the start, and looks for itself every millisecond.
"""

import time
from typing import Any

from moe4.vllm_plugin.cpu.threads import is_asked_for

AWAKE_SECONDS, LOOK_MILLISECONDS = 1.0, 1  # vLLM polls for as long


def attach() -> None:
    """Let readers wait without polling where `moe4 serve` has bound all processors."""
    if not is_asked_for():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    class PatientCondition(shm_broadcast.SpinCondition):  # type: ignore[misc]  # vllm is untyped here
        """vLLM's condition that sleeps where vLLM's polls."""

        def __init__(self, is_reader: bool, *arguments: Any, **options: Any) -> None:
            super().__init__(is_reader, *arguments, **options)
            self.busy_loop_s = -1.0  # so that vLLM's waits for an announcement from the start

        def wait(self, timeout_ms: int | None = None) -> None:
            """Wait for an announcement; for a millisecond at most as long as vLLM's would poll."""
            if time.monotonic() <= self.last_read + AWAKE_SECONDS:
                timeout_ms = LOOK_MILLISECONDS
            super().wait(timeout_ms)

    shm_broadcast.SpinCondition = PatientCondition
