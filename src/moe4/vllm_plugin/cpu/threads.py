"""Give processors up while other programs keep them busy.

A product is cut into equal parts, one a thread, and all wait for the slowest. A thread that shares its
processor with another program gets half of it and makes every step twice as long; two such threads rarely run
at the same moment, and a step was seen to take ten times as long. One processor fewer costs less. So before a
step, four times a second at most, the worker looks at how much of its processors' time other programs took,
and computes with as many threads as they leave, and never with fewer than half.

`moe4 serve` asks for it with MOE4_YIELD_PROCESSORS=1 where it has bound all processors; 0 switches it off.
"""

import functools
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

PERIOD_SECONDS = 0.25
# With two processors, one of them shared, a step takes 1 / (1 - share) as long; on one alone about 1.5 times.
LEAST_SHARE = 0.35
BIND, YIELD = "VLLM_CPU_OMP_THREADS_BIND", "MOE4_YIELD_PROCESSORS"
STAT = Path("/proc/stat")
logger = logging.getLogger("vllm.plugins.moe4")


class ThreadCount:
    """How many threads to compute with, from what others take of the processors."""

    def __init__(
        self,
        processors: Sequence[int],
        busy_seconds: Callable[[], float],
        own_seconds: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with a thread a processor.

        busy_seconds: what these processors have worked since some moment, for anybody.
        own_seconds: what this process has.
        """
        self.most = self.current = len(processors)
        self._busy, self._own, self._clock = busy_seconds, own_seconds, clock
        self._last = self._look()

    def update(self) -> int:
        """Return the threads to use from now on."""
        if self._clock() - self._last[0] < PERIOD_SECONDS:
            return self.current
        now = self._look()
        passed, busy, own = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        self.current = choose_threads(self.most, self.current, max(0.0, busy - own) / passed)
        return self.current

    def _look(self) -> tuple[float, float, float]:
        return self._clock(), self._busy(), self._own()


def choose_threads(most: int, current: int, others: float) -> int:
    """Return the threads for `most` processors.

    others: the processors' worth of time that other programs took while `current` threads were used.

    A program that always wants to run takes the whole of a processor without a thread, or half of one with a
    thread.
    """
    free = most - current
    shared = others - free
    if shared > LEAST_SHARE / 2:
        wanted = free + math.floor(2 * shared + 1 - 2 * LEAST_SHARE)
    else:
        wanted = math.floor(others + 1 - LEAST_SHARE)
    return max(most - wanted, most // 2, 1)


def read_busy_seconds(processors: Sequence[int], text: str) -> float:
    """Return the seconds that processors have not been idle, from the text of /proc/stat.

    Raises ValueError if one of them is not in it.
    """
    lines = {line.split(None, 1)[0]: line.split()[1:] for line in text.splitlines() if line.startswith("cpu")}
    ticks = 0
    for processor in processors:
        fields = lines.get(f"cpu{processor}")
        if fields is None or len(fields) < 7:
            raise ValueError(f"/proc/stat does not describe processor {processor}")
        # user, nice, system, idle, iowait, irq, softirq
        ticks += sum(int(value) for number, value in enumerate(fields[:7]) if number not in (3, 4))
    return ticks / os.sysconf("SC_CLK_TCK")


def is_asked_for() -> bool:
    """Say whether `moe4 serve` has bound all processors and wants them shared with other programs."""
    return os.environ.get(YIELD) == "1"


def attach() -> None:
    """Have vLLM's CPU worker choose its threads before each step, where `moe4 serve` asked for it."""
    processors = [int(word) for word in os.environ.get(BIND, "").split(",") if word.isdigit()]
    if not is_asked_for() or len(processors) < 2:
        return
    try:
        count = ThreadCount(processors, lambda: read_busy_seconds(processors, STAT.read_text()))
    except (OSError, ValueError) as error:
        logger.warning("moe4 cannot see how busy other programs keep the processors: %s", error)
        return
    from vllm.v1.worker.cpu_worker import CPUWorker

    execute = CPUWorker.execute_model

    @functools.wraps(execute)
    def execute_model(worker: Any, *arguments: Any, **options: Any) -> Any:
        before = count.current
        if count.update() != before:
            logger.debug("moe4: %d threads of %d", count.current, count.most)
            torch._C.set_num_threads(count.current)  # vLLM has replaced torch.set_num_threads by a warning
        return execute(worker, *arguments, **options)

    CPUWorker.execute_model = execute_model
