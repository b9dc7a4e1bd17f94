"""The expert kernels beside what the machine can do and beside other engines, on Kimi-K2's shapes.

    python benchmarks/bench_experts.py                        the sweep, 1 to 4096 tokens; JSON on stdout
    python benchmarks/bench_experts.py --peers --tokens 1,8   other engines too, as many as are installed
    ... --markdown FILE --plot FILE.svg                       a table and a plot

Every token chooses `--top-k` of `--experts` experts at random; together their weights exceed any cache, and
each call draws anew. All contestants get the same calls, in turn, in one process, on the same threads. Each
is first checked against float64. Needs about 4 GB with the default 16 experts, with the peers 9.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from experts.contestants import moe4, peers
from experts.layer import Layer
from experts.measure import Ceilings, check, measure
from experts.report import as_json, describe_machine, markdown, plot

from moe4.kernels import selected_path

SWEEP = [2**i for i in range(13)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=SWEEP)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--inter", type=int, default=2048)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9, help="up to 64 tokens; a third above, two at 2048")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--paths", type=lambda text: text.split(","), default=[selected_path()])
    parser.add_argument("--peers", action="store_true", help="other engines, too")
    parser.add_argument("--peer-tokens", type=int, default=256, help="the most tokens that peers get")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    layer = Layer.make(args.experts, args.hidden, args.inter, args.group_size, args.top_k)
    forwards = {f"moe4 {path}": moe4(layer, path) for path in args.paths}
    absent: dict[str, str] = {}
    if args.peers:
        others, absent = peers(layer)
        forwards |= others
    errors = check(forwards, layer)
    machine = describe_machine()

    def rounds(tokens: int) -> int:
        return args.rounds if tokens <= 64 else max(2, args.rounds // 3) if tokens < 2048 else 2

    rows = measure(
        forwards,
        layer,
        Ceilings(layer, *layer.bf16()),
        tokens=args.tokens,
        rounds=lambda tokens: args.rounds
        if tokens <= 64
        else max(2, args.rounds // 3)
        if tokens < 2048
        else 2,
        most_tokens=lambda name: max(args.tokens) if name.startswith("moe4") else args.peer_tokens,
    )
    shape = f"{args.hidden} x {args.inter}, top {args.top_k} of {args.experts}, group {args.group_size}"
    report = {
        "shape": shape,
        "command": "python " + " ".join(sys.argv),
        "machine": machine,
        "absent": absent,
        "relative_errors": errors,
        "rows": as_json(rows),
    }
    print(json.dumps(report, indent=1))
    if args.markdown:
        args.markdown.write_text(markdown(report, rows))
    if args.plot:
        plot(rows, f"Routed experts of one layer, {shape}", args.plot)


if __name__ == "__main__":
    main()
