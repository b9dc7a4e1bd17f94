"""How long the rest of a run will take, from what each layer was expected to take and those that are done.

A layer is two kinds of work: its experts, each solved on its share of the tokens, and the rest, which is one
forward pass of all tokens. What either takes beside what was expected is measured as the run goes. The
first layer of a run also loads code and starts threads, once: it is half believed until a second is done.
On a GPU a layer is committed while the next ones run; what that leaves at the end counts, too.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTime:
    """What a layer is expected to take, in seconds."""

    rest_seconds: float
    expert_seconds: float = 0.0
    """Each expert."""
    num_experts: int = 0
    commit_seconds: float = 0.0
    """From the end of its computation until it is committed, if that is behind the next ones' back."""
    waits: bool = False
    """Whether this begins only when all layers before it are committed."""


class TimeLeft:
    """Follows a run step by step: a layer's experts one after another, then the layer."""

    def __init__(
        self, layers: list[LayerTime], num_done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._layers, self._layer, self._clock = layers, num_done, clock
        self._lock = threading.Lock()  # the thread that commits asks what is left
        self._num_experts = self._num_in_first_burst = 0
        self._measured = {"rest": [0.0, 0.0], "experts": [0.0, 0.0], "commit": [0.0, 0.0]}  # taken, expected
        self._first_pace: float | None = None  # of the first layer's rest, beside what was expected
        self._layer_start = self._first_expert = self._last_expert = clock()
        self._uncommitted: dict[int, float] = {}  # when each layer ended that is not committed

    def expert_done(self) -> None:
        """Take notice of an expert."""
        with self._lock:
            now = self._clock()
            if self._num_experts == 0:
                self._first_expert, self._num_in_first_burst = now, 0
            if now - self._first_expert < self._expert_seconds():
                self._num_in_first_burst += 1
            self._last_expert = now
            self._num_experts += 1

    def layer_done(self) -> None:
        """Take notice of a layer, whose experts are all done."""
        with self._lock:
            if self._layer == len(self._layers):  # a rank other than 0, which reports nothing
                return
            now, layer = self._clock(), self._layers[self._layer]
            taken = self._experts_taken()
            if taken:
                self._note("experts", taken, layer.expert_seconds * self._num_experts)
            rest_taken = now - self._layer_start - taken
            if self._first_pace is None:
                self._first_pace = rest_taken / layer.rest_seconds if layer.rest_seconds > 0 else 1.0
            else:
                self._note("rest", rest_taken, layer.rest_seconds)
            if layer.commit_seconds:
                self._uncommitted[self._layer] = now
            self._layer, self._num_experts, self._layer_start = self._layer + 1, 0, now

    def layer_committed(self, number: int) -> None:
        """Take notice that a layer, counted from 0, is committed."""
        with self._lock:
            ended = self._uncommitted.pop(number, None)
            if ended is not None:
                self._note("commit", self._clock() - ended, self._layers[number].commit_seconds)

    def seconds(self) -> float:
        """Return how long the rest will take."""
        with self._lock:
            return self._seconds()

    def _seconds(self) -> float:
        rest, experts, commit = (self._factor(kind) for kind in ("rest", "experts", "commit"))
        now = self._clock()
        time = now
        committed = max(
            (
                ended + commit * self._layers[number].commit_seconds
                for number, ended in self._uncommitted.items()
            ),
            default=now,
        )
        for number, layer in enumerate(self._layers[self._layer :]):
            if layer.waits:
                time = max(time, committed)
            all_experts = layer.expert_seconds * layer.num_experts
            whole = rest * layer.rest_seconds + experts * all_experts
            if number == 0:
                if self._num_experts:
                    missing = layer.num_experts - self._num_experts
                    whole = experts * layer.expert_seconds * missing
                elif not layer.waits:
                    whole = max(0.0, whole - (now - self._layer_start))
            time += whole
            committed = max(committed, time + commit * layer.commit_seconds)
        return max(time, committed) - now

    def fraction(self) -> float:
        """Return which part of the expected work is done, 0 to 1."""
        expected = [layer.rest_seconds + layer.expert_seconds * layer.num_experts for layer in self._layers]
        done = sum(expected[: self._layer])
        if self._num_experts and self._layer < len(self._layers):
            done += self._layers[self._layer].expert_seconds * self._num_experts
        return done / max(sum(expected), 1e-9)

    def _expert_seconds(self) -> float:
        """Return what an expert of this layer is expected to take."""
        return self._layers[self._layer].expert_seconds if self._layer < len(self._layers) else 0.0

    def _experts_taken(self) -> float:
        """Return what this layer's experts have taken, from the pace of those after the first ones.

        The first also waits for the forward pass. On a GPU experts are done some at a time, and as many as
        came with the first have waited with it.
        """
        between, counted = (
            self._last_expert - self._first_expert,
            self._num_experts - self._num_in_first_burst,
        )
        return between * self._num_experts / counted if counted > 0 else 0.0

    def _note(self, kind: str, taken: float, expected: float) -> None:
        self._measured[kind][0] += taken
        self._measured[kind][1] += expected

    def _factor(self, kind: str) -> float:
        """Return how many times as long as expected work of a kind takes."""
        taken, expected = self._measured[kind]
        enough = 8 * self._expert_seconds()  # before that a pace is chance
        if kind == "experts" and self._num_experts and self._last_expert - self._first_expert >= enough:
            taken += self._experts_taken()
            expected += self._expert_seconds() * self._num_experts
        if expected:
            return taken / expected
        return math.sqrt(max(0.0, self._first_pace or 1.0)) if kind == "rest" else 1.0
