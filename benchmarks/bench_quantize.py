"""Time and memory of quantizing experts of Kimi-K2's size, beside counted operations and beside other tools.

    python benchmarks/bench_quantize.py                             one expert; JSON on stdout
    python benchmarks/bench_quantize.py --whole 4                   and whole runs on k2-tiny and a layer of 4
    python benchmarks/bench_quantize.py --whole 4 --memory 8        and peak memory with 4 and with 8 experts
    python benchmarks/bench_quantize.py --whole 4 --peers           and the peers on the same tokens
    ... --peer-python llmcompressor=/path/to/bin/python             in an environment that is there already

`--whole` and `--memory` run the command `moe4 quantize` in groups of 128, each time in a process of its own,
on k2-tiny and on checkpoints made by make_k2_shaped.py (BF16 beside peers, block-FP8 for `--memory`). Peers
are the packages in fidelity/peers.py, driven as there. An expert takes seconds on an idle machine; a layer of
four and the peers take up to an hour.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench_experts import describe_machine
from fidelity.peers import parse_python
from quantizing.expert import bench_expert
from quantizing.whole import bench_memory, bench_whole


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=3000, help="of the one expert")
    parser.add_argument("--whole", type=int, metavar="EXPERTS", help="run k2-tiny and a layer of so many")
    parser.add_argument("--memory", type=int, metavar="EXPERTS", help="peak memory of half and of so many")
    parser.add_argument("--num-sequences", type=int, default=8, help="of whole runs")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument(
        "--peer-python", action="append", type=parse_python, default=[], metavar="NAME=PYTHON"
    )
    parser.add_argument("--work", type=Path, help="folder for checkpoints and environments; kept")
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        report["expert"] = bench_expert(args.hidden, args.width, args.tokens)
        if args.memory:
            report["memory"] = bench_memory(args, work)
        if args.whole:
            report["whole"] = bench_whole(args, work)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
