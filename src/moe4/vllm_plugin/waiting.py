"""Processes of vLLM on a CPU sleep while they wait for one another.

vLLM 0.32's processes exchange steps through shared memory. A reader polls it in a loop for a second after it
last read something, so the scheduler's process takes a whole processor during every step, which it then has
to share with the threads that compute it. A writer also announces each message on a socket, for readers that
have given up polling. Here readers wait for that at once: it takes them a tenth of a millisecond to wake up.
"""

from typing import Any

from moe4.vllm_plugin.threads import is_asked_for


def attach() -> None:
    """Let readers wait without polling where `moe4 serve` has bound all processors."""
    if not is_asked_for():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    class PatientCondition(shm_broadcast.SpinCondition):  # type: ignore[misc]  # vllm is untyped here
        """vLLM's condition that polls for no time."""

        def __init__(self, is_reader: bool, *arguments: Any, **options: Any) -> None:
            super().__init__(is_reader, *arguments, **options)
            self.busy_loop_s = 0.0

    shm_broadcast.SpinCondition = PatientCondition
