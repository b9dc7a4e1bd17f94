"""The expert kernels beside what the machine can do and beside other engines, on Kimi-K2's shapes.

    python benchmarks/bench_experts.py                        the sweep, 1 to 4096 tokens; JSON on stdout
    python benchmarks/setup_peers.py DIR                      once: install zentorch, kt-kernel and ggml there
    python benchmarks/bench_experts.py --peers all --peer-env DIR --tokens 1,8    other engines, too
    ... --paths avx512_int16,avx512_vnni                      more than one of ours
    ... --markdown FILE --plot FILE.svg                       a table and a plot

Every token chooses `--top-k` of `--experts` experts at random; together their weights exceed any cache, and
each call draws anew. All contestants get the same calls, in turn, with the same number of threads: ours,
torch and vLLM in this process, the others each in one of its own, which measures itself and is stopped
while another's turn lasts. Each is first checked against float64 of its own weights; what is wrong or not
here is named in the report. With the default 16 experts, needs about 4 GB, with all peers 13; `--peers`
takes some of them by name.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from experts.in_process import moe4
from experts.layer import Layer
from experts.measure import Ceilings, measure
from experts.oracle import bf16_weights
from experts.peers.engine import Setting
from experts.report import as_json, describe_machine, markdown, plot
from experts.roster import IN_PROCESS, PEERS, Roster

from moe4.kernels import selected_path

SWEEP = [2**i for i in range(13)]


def peer_names(text: str) -> list[str]:
    names = list(PEERS) if text == "all" else text.split(",")
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(
            f"expected all or some of {', '.join(PEERS)}, found {min(unknown)!r}"
        )
    return names


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
    parser.add_argument("--peers", type=peer_names, default=[], help=f"all, or some of {', '.join(PEERS)}")
    parser.add_argument("--peer-env", type=Path, metavar="DIR", help="what benchmarks/setup_peers.py made")
    parser.add_argument("--peer-tokens", type=int, default=256, help="the most tokens that peers get")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    layer = Layer.make(args.experts, args.hidden, args.inter, args.group_size, args.top_k)
    w13, w2 = bf16_weights(layer, args.experts if args.peers else min(args.experts, 16))
    roster = Roster(moe4(layer, path) for path in args.paths)
    roster.add_in_process([name for name in args.peers if name in IN_PROCESS], layer, w13, w2)
    setting = None
    if args.peer_env:
        setting = Setting(
            environment=args.peer_env.resolve(),
            num_threads=args.threads,
            max_tokens=max(args.peer_tokens, 64),
        )

    def rounds(tokens: int) -> int:
        return args.rounds if tokens <= 64 else max(2, args.rounds // 3) if tokens < 2048 else 2

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        engines = [name for name in args.peers if name not in IN_PROCESS]
        roster.add_workers(engines, layer, Path(folder), setting, stack)
        notes = {contestant.name: contestant.note for contestant in roster.contestants}
        roster.check(layer)
        machine = describe_machine()
        rows = measure(
            roster,
            layer,
            Ceilings(layer, w13, w2),
            tokens=args.tokens,
            rounds=rounds,
            most_tokens=lambda name: max(args.tokens) if name.startswith("moe4") else args.peer_tokens,
        )
    shape = f"{args.hidden} x {args.inter}, top {args.top_k} of {args.experts}, group {args.group_size}"
    report = {
        "shape": shape,
        "command": "python " + " ".join(sys.argv),
        "machine": machine,
        "contestants": {name: note for name, note in notes.items() if name not in roster.wrong},
        "absent": roster.absent,
        "wrong": roster.wrong,
        "relative_errors": roster.errors,
        "rows": as_json(rows),
    }
    print(json.dumps(report, indent=1))
    if args.markdown:
        args.markdown.write_text(markdown(report, rows))
    if args.plot:
        plot(rows, f"Routed experts of one layer, {shape}", args.plot)


if __name__ == "__main__":
    main()
