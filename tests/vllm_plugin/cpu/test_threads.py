"""The worker gives up the processors that other programs keep busy, and takes them back."""

import multiprocessing
import os
import time
from collections.abc import Callable

import pytest
from vllm_forks import VllmForks

from moe4.vllm_plugin.cpu.threads import ThreadCount, choose_threads, read_busy_seconds

STAT = """cpu  100 0 50 1000 5 1 2 0 0 0
cpu0 60 5 20 400 50 1 4 9 0 0
cpu1 40 0 30 600 5 0 0 0 0 0
intr 12345
"""


@pytest.mark.parametrize(
    ("most", "current", "others", "expected"),
    [
        (2, 2, 0.05, 2),  # the server's own scheduler and API
        (2, 2, 0.5, 1),  # a program that always runs gets half of a shared processor
        (2, 1, 1.0, 1),  # and the whole of a free one
        (2, 1, 0.1, 2),  # it has ended
        (2, 2, 1.0, 1),  # two of them
        (2, 1, 1.5, 1),
        (8, 8, 0.5, 7),
        (8, 7, 1.0, 7),
        (8, 7, 1.5, 6),  # another one has come
        (8, 8, 4.0, 4),  # never fewer than half
        (8, 4, 8.0, 4),
        (3, 1, 0.0, 3),
    ],
)
def test_threads_for_what_others_take(most: int, current: int, others: float, expected: int) -> None:
    assert choose_threads(most, current, others) == expected


def test_a_program_that_stays_gives_a_choice_that_stays() -> None:
    """For programs that always want to run, by the rule that a shared processor is split in half."""
    for most in range(2, 9):
        for hungry in range(most):
            current = most
            for _ in range(4):
                free = most - current
                others = min(hungry, free) + 0.5 * max(0, hungry - free)
                current = choose_threads(most, current, others)
            assert current == max(most - hungry, most // 2, 1), (most, hungry)


def script(moments: list[tuple[float, float, float]]) -> tuple[list[Callable[[], float]], Callable[[], None]]:
    """Return clocks that read the first of `moments`, and what moves them to the next."""

    def advance() -> None:
        moments.pop(0)

    return [lambda number=number: moments[0][number] for number in range(3)], advance  # type: ignore[misc]


def test_it_looks_four_times_a_second_and_subtracts_its_own_work() -> None:
    # clock, busy on both processors, own
    moments = [(0.0, 5.0, 1.0), (0.2, 5.4, 1.2), (0.3, 5.6, 1.42), (0.5, 5.9, 1.45), (0.6, 5.93, 1.75)]
    (clock, busy, own), advance = script(moments)
    count = ThreadCount((0, 1), busy, own, clock)
    advance()
    assert count.update() == 2  # too soon to tell
    advance()
    assert count.update() == 1  # 0.6 s of work in 0.3 s, 0.42 of them its own: others took 0.6 processors
    advance()
    assert count.update() == 1
    advance()
    assert count.update() == 2


def test_busy_time_is_read_from_the_system() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert read_busy_seconds((0,), STAT) == 90 / tick
    assert read_busy_seconds((0, 1), STAT) == 160 / tick
    with pytest.raises(ValueError, match="does not describe processor 2"):
        read_busy_seconds((2,), STAT)


ATTACH = """
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.v1.worker.cpu_worker import CPUWorker

    from moe4.vllm_plugin.cpu import threads, waiting

    before = CPUWorker.execute_model
    threads.attach()
    waiting.attach()
    print(shm_broadcast.SpinCondition.__name__, CPUWorker.execute_model is before)
"""


@pytest.mark.vllm
@pytest.mark.parametrize("asked", [True, False])
def test_vllm_is_changed_only_where_it_was_asked_for(asked: bool, vllm_forks: VllmForks) -> None:
    processors = sorted(os.sched_getaffinity(0))
    bound = ",".join(map(str, processors))
    environment = {"VLLM_CPU_OMP_THREADS_BIND": bound, "MOE4_YIELD_PROCESSORS": str(int(asked))}
    done = vllm_forks.program(ATTACH, environment=environment)
    assert done.returncode == 0, done.stderr
    condition, is_unchanged = done.stdout.split()[-2:]
    assert condition == ("PatientCondition" if asked else "SpinCondition")
    assert is_unchanged == str(not asked or len(processors) < 2)


def _read(handle: object, count: int, queue: "multiprocessing.Queue[list[float]]") -> None:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    from moe4.vllm_plugin.cpu import waiting

    waiting.attach()
    messages = MessageQueue.create_from_handle(handle, 0)
    queue.put([])
    messages.wait_until_ready()
    began = time.process_time()
    delays = []
    for _ in range(count):
        sent = messages.dequeue(timeout=20)
        delays.append(time.monotonic() - sent)
    queue.put([max(delays), time.process_time() - began])


@pytest.mark.vllm
def test_a_reader_waits_asleep_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of messages half a millisecond apart: of such a pair ZeroMQ announces the first one alone."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    monkeypatch.setenv("MOE4_YIELD_PROCESSORS", "1")
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[float]] = context.Queue()
    messages = MessageQueue(1, 1)
    child = context.Process(target=_read, args=(messages.export_handle(), 30, queue))
    child.start()
    queue.get(timeout=120)
    messages.wait_until_ready()
    for _ in range(15):
        messages.enqueue(time.monotonic())
        moment = time.monotonic()
        while time.monotonic() - moment < 0.0005:
            pass
        messages.enqueue(time.monotonic())
        time.sleep(0.2)
    longest, seconds = queue.get(timeout=200)
    child.join()
    assert longest < 1.0, "it slept through a message"
    assert seconds < 1.0, "it polled: three seconds passed in all"
