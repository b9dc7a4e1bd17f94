"""A child that takes too much is ended, and what it found before is kept."""

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from moe4.bounded import PARALLELISM, Bounds, OutOfBoundsError, map_bounded
from moe4.errors import TensorError

LIMITS = Bounds(seconds=0.5, num_bytes=1 << 27)


def run(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return list(map_bounded(function, items, lambda _: LIMITS))


def test_results_come_in_order_and_nothing_changes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARALLELISM, raising=False)
    seen: list[int] = []

    def double(item: int) -> list[int]:
        seen.append(item)
        return [item * 2, os.getpid()]

    found = run(double, [1, 2, 3])
    assert [value for value, _ in found] == [2, 4, 6]
    assert len({child for _, child in found} - {os.getpid()}) == 1
    assert seen == []
    assert PARALLELISM not in os.environ


def spin(_item: object) -> None:
    while True:
        pass


def spin_in_c(_item: object) -> int:
    return len(str(7 ** (7**9)))


@pytest.mark.parametrize("function", [spin, spin_in_c])
def test_the_processor_time_is_bounded(function: Callable[[object], Any]) -> None:
    started = time.monotonic()
    with pytest.raises(OutOfBoundsError, match="takes more than 0 s of the processor") as caught:
        run(lambda item: function(item) if item else item, [0, 1])
    assert caught.value.number == 1
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "function",
    [
        lambda _: "x" * (1 << 40),
        lambda _: [bytearray(1 << 20) for _ in range(1 << 20)],
        lambda _: "x" * (1 << 26),  # the answer
        lambda _: ctypes.CDLL(None).abort(),  # as a library does that gets no memory
    ],
)
def test_the_memory_is_bounded(function: Callable[[object], Any]) -> None:
    with pytest.raises(OutOfBoundsError, match=r"takes more than 128 MiB|gives more than 32 MiB"):
        run(function, [0])


def test_a_crash_has_a_name() -> None:
    with pytest.raises(OutOfBoundsError, match="SIGSEGV"):
        run(lambda _: ctypes.string_at(0), [0])


def test_errors_are_those_of_the_function() -> None:
    def refuse(_item: object) -> None:
        raise TensorError("x has no scales")

    with pytest.raises(TensorError, match=r"^x has no scales$"):
        run(refuse, [0])
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run(lambda item: 1 // item, [0])


def test_no_child_is_left_behind() -> None:
    answers = map_bounded(lambda _: os.getpid(), list(range(10)), lambda _: LIMITS)
    children = {next(answers) for _ in range(3)}
    answers.close()  # as a loop does that is left early
    (child,) = children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


def test_a_child_that_waits_for_ever_is_ended() -> None:
    """As one may that was forked while another thread held a lock."""
    limits = Bounds(seconds=0.02, num_bytes=1 << 27)
    with pytest.raises(OutOfBoundsError, match="does not end within 1 s"):
        list(map_bounded(lambda _: time.sleep(3600), [0], lambda _: limits))
