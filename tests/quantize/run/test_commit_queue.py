"""Commits behind the next layers' backs: beside each other, sealed in order, none after one that failed."""

import threading

import pytest
import torch

from moe4.quantize.run import commit_queue
from moe4.quantize.run.commit_queue import MOST_BEHIND, Commit, CommitQueue

WAIT_SECONDS = 20.0
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def no_gpu_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_queue, "use_device", lambda _: None)


class Layers:
    """Commits by number, which become durable when they are told to."""

    def __init__(self, count: int, failing: int | None = None) -> None:
        self.may_end = [threading.Event() for _ in range(count)]
        self.begun = [threading.Event() for _ in range(count)]
        self.sealed: list[int] = []
        self.failing = failing

    def commit(self, number: int) -> Commit:
        def make_durable() -> None:
            self.begun[number].set()
            assert self.may_end[number].wait(WAIT_SECONDS)
            if number == self.failing:
                raise OSError("no room")

        return Commit(make_durable=make_durable, seal=lambda: self.sealed.append(number))


def test_commits_overlap_and_are_sealed_in_order() -> None:
    layers = Layers(MOST_BEHIND)
    with CommitQueue(GPU) as queue:
        for number in range(MOST_BEHIND):
            queue.put(layers.commit(number), may_wait=True)
        assert all(begun.wait(WAIT_SECONDS) for begun in layers.begun)
        for number in reversed(range(1, MOST_BEHIND)):
            layers.may_end[number].set()
        assert layers.sealed == []
        layers.may_end[0].set()
    assert layers.sealed == list(range(MOST_BEHIND))


def test_nothing_is_sealed_after_a_commit_that_failed() -> None:
    layers = Layers(3, failing=1)
    with pytest.raises(OSError, match="no room"), CommitQueue(GPU) as queue:
        for number in range(3):
            queue.put(layers.commit(number), may_wait=True)
        for may_end in layers.may_end:
            may_end.set()
    assert layers.sealed == [0]


def test_a_run_waits_when_too_much_is_behind() -> None:
    layers = Layers(MOST_BEHIND + 1)
    with CommitQueue(GPU) as queue:
        for number in range(MOST_BEHIND):
            queue.put(layers.commit(number), may_wait=True)
        last = threading.Thread(
            target=queue.put, args=(layers.commit(MOST_BEHIND),), kwargs={"may_wait": True}
        )
        last.start()
        assert not layers.begun[MOST_BEHIND].wait(0.2)
        for may_end in layers.may_end:
            may_end.set()
        last.join(WAIT_SECONDS)
    assert layers.sealed == list(range(MOST_BEHIND + 1))


def test_a_commit_that_must_not_wait_comes_after_those_before_it() -> None:
    layers = Layers(2)
    for may_end in layers.may_end:
        may_end.set()
    with CommitQueue(GPU) as queue:
        queue.put(layers.commit(0), may_wait=True)
        queue.put(layers.commit(1), may_wait=False)
        assert layers.sealed == [0, 1]
