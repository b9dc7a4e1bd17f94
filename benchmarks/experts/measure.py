"""Times, each beside the two ceilings of its own minute.

The machine may be shared, and its memory with it. So the ceilings are measured again and again, on the same
threads: before and after each contestant's turn, reading the bytes of the chosen experts, by a loop that does
nothing else; in each round, torch's bfloat16 products of the same shapes, on weights that are dequantized
already. A share is a median of shares, each of one turn.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from experts.contestant import settle
from experts.layer import Layer
from experts.peers.engine import BrokenError
from experts.roster import Roster
from moe4.kernels.reading import read_tensors

Quartiles = tuple[float, float, float]  # the first, the median, the third


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contestant at one number of tokens, over the rounds."""

    name: str
    tokens: int
    seconds: Quartiles
    read_seconds: Quartiles  # of reading the chosen experts' INT4 bytes
    multiply_seconds: Quartiles  # of torch's bfloat16 products of these shapes
    of_reading: Quartiles  # the share of the memory's rate, for few tokens
    of_products: (
        Quartiles  # the share of torch's rate, for many tokens; with few, its products wait for memory
    )
    int4_bytes: float
    flop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One contestant in one round."""

    seconds: float
    read_seconds: float
    multiply_seconds: float


def quartiles(values: Iterable[float]) -> Quartiles:
    ordered = list(values)
    if len(ordered) == 1:
        return (ordered[0],) * 3
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return low, middle, high


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Ceilings:
    """Memory to read and matrices to multiply; w13 and w2 may be some experts' only, and stand for all."""

    def __init__(self, layer: Layer, w13: Tensor, w2: Tensor) -> None:
        self.layer, self.w13, self.w2 = layer, w13, w2

    def read(self, experts: list[int]) -> float:
        """Return the seconds of reading these experts' own bytes."""
        layer = self.layer
        tensors = (layer.w13_packed, layer.w13_scale, layer.w2_packed, layer.w2_scale)
        parts = [tensor[expert] for expert in experts for tensor in tensors]
        settle()
        return timed(lambda: read_tensors(parts))

    def multiply(self, ids: Tensor) -> float:
        counts = torch.bincount(ids.flatten(), minlength=self.layer.experts).tolist()
        inputs = [
            (e, torch.randn(n, self.layer.hidden).bfloat16(), torch.randn(n, self.layer.inter).bfloat16())
            for e, n in enumerate(counts)
            if n
        ]

        def products() -> None:
            for expert, x, act in inputs:
                linear(x, self.w13[expert % len(self.w13)])
                linear(act, self.w2[expert % len(self.w2)])

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
        turns: dict[str, list[Turn]] = defaultdict(list)
        num_bytes = []
        for repeat in range(rounds(num_tokens) + 1):
            call = layer.draw_call(num_tokens)
            chosen = call[2].unique().tolist()
            multiply = ceilings.multiply(call[2])
            ceilings.read(chosen)  # the first to come would pay for finding the pages
            before = ceilings.read(chosen)
            for contestant in list(roster.contestants):
                if num_tokens > most_tokens(contestant.name):
                    continue
                try:
                    seconds = contestant.run(call)[0]
                except BrokenError as error:
                    roster.lose(contestant, f"{error}, with {num_tokens} tokens")
                    continue
                after = ceilings.read(chosen)
                if repeat:
                    turn = Turn(seconds=seconds, read_seconds=(before + after) / 2, multiply_seconds=multiply)
                    turns[contestant.name].append(turn)
                before = after
            if repeat:
                num_bytes.append(len(chosen) * layer.bytes_per_expert)
        for name, values in turns.items():
            rows.append(
                Row(
                    name=name,
                    tokens=num_tokens,
                    seconds=quartiles(turn.seconds for turn in values),
                    read_seconds=quartiles(turn.read_seconds for turn in values),
                    multiply_seconds=quartiles(turn.multiply_seconds for turn in values),
                    of_reading=quartiles(turn.read_seconds / turn.seconds for turn in values),
                    of_products=quartiles(turn.multiply_seconds / turn.seconds for turn in values),
                    int4_bytes=statistics.mean(num_bytes),
                    flop=layer.flop(num_tokens),
                )
            )
        print(f"bench_experts: {num_tokens} tokens done", file=sys.stderr)
    return rows
