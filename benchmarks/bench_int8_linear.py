"""`--rest int8`'s product beside torch's, on shapes of Kimi-K2: its time and its share of what reading takes.

    python benchmarks/bench_int8_linear.py [--shapes 18432x7168 ...] [--tokens 1,2,4,8,16,64,256]

Each is called with several matrices in turn, which together exceed any cache; all take turns, with torch's
threads. *int8pack*: torch's _weight_int8pack_mm; *bf16*: the product of the weights before they were
converted. *Reading*: a loop that reads the int8 weights and does nothing else, just before. A Markdown table
on stdout.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from moe4.kernels import int8_linear
from moe4.kernels.inspection import read_tensors

COLD_BYTES = 256 << 20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["18432x7168", "7168x8192", "1536x7168"])
    parser.add_argument(
        "--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8, 16, 64, 256]
    )
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


class Weights:
    """Some matrices of one shape, in int8 and as they were before; `contestants` multiply by the i-th."""

    def __init__(self, rows: int, columns: int) -> None:
        copies = max(2, -(-COLD_BYTES // (rows * columns)))
        self.codes = [torch.randint(-127, 128, (rows, columns), dtype=torch.int8) for _ in range(copies)]
        self.scales = torch.rand(rows).to(torch.bfloat16) / 1000
        self.bf16 = [(some * self.scales.unsqueeze(1)).to(torch.bfloat16) for some in self.codes]

    def contestants(self, x: Tensor) -> dict[str, Callable[[int], object]]:
        return {
            "reading": lambda i: read_tensors([self.codes[i]]),
            "moe4": lambda i: int8_linear(x, self.codes[i], self.scales),
            "int8pack": lambda i: torch.ops.aten._weight_int8pack_mm(x, self.codes[i], self.scales),
            "bf16": lambda i: linear(x, self.bf16[i]),
        }

    def error(self, x: Tensor) -> float:
        """Return moe4's error relative to float64."""
        exact = x.double() @ (self.codes[0].double() * self.scales.double().unsqueeze(1)).T
        return float((int8_linear(x, self.codes[0], self.scales).double() - exact).norm() / exact.norm())


def measure(weights: Weights, x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contestant's turns; the first round is left out."""
    contestants = weights.contestants(x)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for place, (name, run) in enumerate(contestants.items()):
            start = time.perf_counter()
            run((turn + place) % len(weights.codes))
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    print("| weights | tokens | reading | moe4 | share of reading | int8pack | bf16 | bf16 / moe4 | error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shape in args.shapes:
        rows, columns = (int(n) for n in shape.split("x"))
        weights = Weights(rows, columns)
        for tokens in args.tokens:
            x = torch.randn(tokens, columns).to(torch.bfloat16)
            times = measure(weights, x, args.rounds)
            median = {name: f"{statistics.median(found) * 1e3:.2f}" for name, found in times.items()}
            share = statistics.median(a / b for a, b in zip(times["reading"], times["moe4"], strict=True))
            ratio = statistics.median(a / b for a, b in zip(times["bf16"], times["moe4"], strict=True))
            cells = (shape.replace("x", " x "), tokens, median["reading"], median["moe4"], f"{share:.0%}")
            cells += (median["int8pack"], median["bf16"], f"{ratio:.2f}", f"{weights.error(x):.2%}")
            print("|", *(f"{cell} |" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
