"""Times, each beside the two ceilings of its own minute.

The machine may be shared, and its memory with it. So the ceilings are measured again in every round, between
the contestants, on the same threads: reading as many bytes as the chosen experts have, and torch's bfloat16
products of the same shapes, on weights that are dequantized already.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from experts.layer import Layer
from experts.peers.engine import BrokenError
from experts.roster import Roster


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contestant at one number of tokens. Seconds are medians over the rounds."""

    name: str
    tokens: int
    seconds: float
    quartiles: tuple[float, float]
    read_seconds: float  # of reading the chosen experts' INT4 bytes
    multiply_seconds: float  # of torch's bfloat16 products of these shapes
    int4_bytes: float
    flop: int

    @property
    def of_reading(self) -> float:
        """Return the share of the memory's rate, for few tokens."""
        return self.read_seconds / self.seconds

    @property
    def of_products(self) -> float:
        """Return the share of torch's rate, for many tokens; with few, its products wait for memory."""
        return self.multiply_seconds / self.seconds


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Ceilings:
    """Memory to read and matrices to multiply."""

    def __init__(self, layer: Layer, w13: Tensor, w2: Tensor) -> None:
        # As int64, which torch reads at the machine's rate; beyond any cache.
        self.words = torch.ones(max(2**25, layer.experts * layer.bytes_per_expert // 8), dtype=torch.int64)
        self.layer, self.w13, self.w2 = layer, w13, w2

    def read(self, num_bytes: int) -> float:
        part = self.words[: num_bytes // 8]
        return timed(part.sum)

    def multiply(self, ids: Tensor) -> float:
        counts = torch.bincount(ids.flatten(), minlength=self.layer.experts).tolist()
        inputs = [
            (e, torch.randn(n, self.layer.hidden).bfloat16(), torch.randn(n, self.layer.inter).bfloat16())
            for e, n in enumerate(counts)
            if n
        ]

        def products() -> None:
            for expert, x, act in inputs:
                linear(x, self.w13[expert])
                linear(act, self.w2[expert])

        return timed(products)


def measure(
    roster: Roster,
    layer: Layer,
    ceilings: Ceilings,
    *,
    tokens: list[int],
    rounds: Callable[[int], int],
    most_tokens: Callable[[str], int],
) -> list[Row]:
    """Time every contestant at every number of tokens, in turn; the first round is a warm-up."""
    rows = []
    for num_tokens in tokens:
        seconds: dict[str, list[float]] = defaultdict(list)
        read, multiply, num_bytes = [], [], []
        for repeat in range(rounds(num_tokens) + 1):
            call = layer.draw_call(num_tokens)
            size = len(call[2].unique()) * layer.bytes_per_expert
            times = {}
            for contestant in list(roster.contestants):
                if num_tokens > most_tokens(contestant.name):
                    continue
                try:
                    times[contestant.name] = contestant.run(call)[0]
                except BrokenError as error:
                    roster.lose(contestant, f"{error}, with {num_tokens} tokens")
            ceiling = (ceilings.read(size), ceilings.multiply(call[2]))
            if repeat:
                for name, value in times.items():
                    seconds[name].append(value)
                read.append(ceiling[0])
                multiply.append(ceiling[1])
                num_bytes.append(size)
        for name, values in seconds.items():
            low, _, high = (
                statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
            )
            rows.append(
                Row(
                    name=name,
                    tokens=num_tokens,
                    seconds=statistics.median(values),
                    quartiles=(low, high),
                    read_seconds=statistics.median(read),
                    multiply_seconds=statistics.median(multiply),
                    int4_bytes=statistics.mean(num_bytes),
                    flop=layer.flop(num_tokens),
                )
            )
        print(f"bench_experts: {num_tokens} tokens done", file=sys.stderr)
    return rows
