"""The products of `--rest int8` and `int4` beside torch's, on shapes of Kimi-K2: their times.

    python benchmarks/bench_linear.py [--shapes 18432x7168 ...] [--tokens 1,2,4,8,16,64,256]

Each is called with several matrices in turn, which together exceed any cache; all take turns, with torch's
threads. *int8* and *int4*: moe4's, int4 in groups of 128; *int8pack*: torch's _weight_int8pack_mm; *bf16*:
the product of the weights before they were converted. *Reading*: a loop that reads the int8 weights and does
nothing else, just before. *Error*: of int8's and int4's products, relative to float64's with the
same integers. A Markdown table on stdout.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from moe4.kernels import int4_linear, int8_linear
from moe4.kernels.reading import read_tensors
from moe4.kernels.reference import dequantize

COLD_BYTES = 256 << 20
GROUP_SIZE = 128


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
    """Some matrices of one shape, in int4, in int8 and in bf16; `contestants` multiply by the i-th."""

    def __init__(self, rows: int, columns: int) -> None:
        copies = max(2, -(-2 * COLD_BYTES // (rows * columns)))
        self.codes = [torch.randint(-127, 128, (rows, columns), dtype=torch.int8) for _ in range(copies)]
        self.scales = torch.rand(rows).to(torch.bfloat16) / 1000
        self.words = [
            torch.randint(-(2**31), 2**31, (rows, columns // 8), dtype=torch.int64).to(torch.int32)
            for _ in self.codes
        ]
        self.groups = torch.rand(rows, columns // GROUP_SIZE).to(torch.bfloat16) / 100
        self.bf16 = [(some * self.scales.unsqueeze(1)).to(torch.bfloat16) for some in self.codes]

    def contestants(self, x: Tensor) -> dict[str, Callable[[int], object]]:
        return {
            "reading": lambda i: read_tensors([self.codes[i]]),
            "int4": lambda i: int4_linear(x, self.words[i], self.groups, group_size=GROUP_SIZE),
            "int8": lambda i: int8_linear(x, self.codes[i], self.scales),
            "int8pack": lambda i: torch.ops.aten._weight_int8pack_mm(x, self.codes[i], self.scales),
            "bf16": lambda i: linear(x, self.bf16[i]),
        }

    def errors(self, x: Tensor) -> tuple[float, float]:
        """Return the errors of int8 and int4 relative to float64."""
        products = (
            (
                int8_linear(x, self.codes[0], self.scales),
                self.codes[0].double() * self.scales.double()[:, None],
            ),
            (
                int4_linear(x, self.words[0], self.groups, group_size=GROUP_SIZE),
                dequantize(self.words[0], self.groups, GROUP_SIZE),
            ),
        )
        pairs = [(found.double(), x.double() @ weight.T) for found, weight in products]
        first, second = (float((found - exact).norm() / exact.norm()) for found, exact in pairs)
        return first, second


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
    print(
        "| weights | tokens | reading | int4 | int8 | int8pack | bf16 | bf16 / int8 | bf16 / int4 | error |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shape in args.shapes:
        rows, columns = (int(n) for n in shape.split("x"))
        weights = Weights(rows, columns)
        for tokens in args.tokens:
            x = torch.randn(tokens, columns).to(torch.bfloat16)
            times = measure(weights, x, args.rounds)
            median = {name: f"{statistics.median(found) * 1e3:.2f}" for name, found in times.items()}
            ratios = (
                statistics.median(a / b for a, b in zip(times["bf16"], times[kind], strict=True))
                for kind in ("int8", "int4")
            )
            cells = (
                shape.replace("x", " x "),
                tokens,
                *median.values(),
                *(f"{ratio:.2f}" for ratio in ratios),
            )
            cells += (", ".join(f"{error:.2%}" for error in weights.errors(x)),)
            print("|", *(f"{cell} |" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
