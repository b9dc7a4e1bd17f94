"""The fidelity of moe4 and other quantizers over models, draws of calibration documents and their number.

    python benchmarks/bench_yardstick.py run --results DIR                     every cell of reference/k2-tiny
    ... run --results DIR --models A B --methods moe4 rtn --device cuda --jobs 6 --until 900
    ... cell MODEL --method moe4 --draw 0 --tokens 32768 --results DIR         one of them
    ... report DIR... --markdown FILE                                          tables; JSON on stdout

Models are folders with k2-tiny's architecture and tokenizer; `python -m k2tiny.train --set seed=2` trains
another. A cell is one method on one model, calibrated on one draw of about so many tokens of the reference
mixture, and measured on held-out text in float32 (fidelity/yardstick/cell.py). It is a process of its own; a
cell that is done is not done again. `run` starts the most important first and leaves DIR/yardstick.json,
whatever happens; `report` takes several of these or their folders, as from several machines. Peers run from
their packages, in environments made under --environments unless --peer-python names a Python that has them.
"""

import argparse
import json
import math
import signal
import sys
from pathlib import Path

import torch
from fidelity.ours import CommandError
from fidelity.peers import PEERS, PeerError, PeerSetting, find_python, parse_python
from fidelity.texts import MODEL
from fidelity.yardstick.cell import CellSetting, HeldOutCounts, run_cell
from fidelity.yardstick.cells import Cell, YardstickError, load_records, order_cells
from fidelity.yardstick.methods import METHODS
from fidelity.yardstick.report import Comparison
from fidelity.yardstick.runner import run_cells, say

OURS = ("moe4-tuned", "moe4")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = shared_options()

    run = commands.add_parser("run", parents=[shared], help="run the cells that are not done")
    run.add_argument("--models", type=Path, nargs="+", default=[MODEL], metavar="FOLDER")
    run.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    run.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="calibration.seed")
    run.add_argument("--tokens", type=int, nargs="+", default=[262_144, 32_768], help="of calibration, about")
    run.add_argument("--until", type=float, default=math.inf, metavar="SECONDS", help="then start no more")
    run.set_defaults(function=command_run)

    cell = commands.add_parser("cell", parents=[shared], help="run one cell")
    cell.add_argument("model", type=Path)
    cell.add_argument("--method", choices=METHODS, required=True)
    cell.add_argument("--draw", type=int)
    cell.add_argument("--tokens", type=int)
    cell.set_defaults(function=command_cell)

    report = commands.add_parser("report", help="tables of what is done")
    report.add_argument("results", type=Path, nargs="+", metavar="DIR_OR_FILE")
    report.add_argument("--markdown", type=Path, help="also write the tables here")
    report.add_argument("--ran", nargs="*", default=[], help="commands to name in the tables' page")
    report.set_defaults(function=command_report)
    return parser.parse_args()


def shared_options() -> argparse.ArgumentParser:
    """Return the options of `run` and `cell`, which `run` passes on as they are."""
    shared, counts = argparse.ArgumentParser(add_help=False), HeldOutCounts()
    shared.add_argument("--results", type=Path, required=True, metavar="DIR")
    shared.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    shared.add_argument("--jobs", type=int, default=1, help="cells at a time")
    shared.add_argument("--problems", type=int, default=counts.problems, help="held-out, four to a document")
    shared.add_argument("--tool-turns", type=int, default=counts.tool_turns, help="held-out")
    shared.add_argument("--chats", type=int, default=counts.chats, help="held-out")
    shared.add_argument("--peer-python", nargs="+", type=parse_python, default=[], metavar="NAME=PYTHON")
    shared.add_argument("--peer-limit", type=float, default=3600, metavar="SECONDS")
    shared.add_argument("--environments", type=Path, default=Path("out/peers"), help="of peers, made here")
    return shared


def peer_setting(args: argparse.Namespace) -> PeerSetting:
    return PeerSetting(
        pythons=dict(args.peer_python),
        environments=args.environments.absolute(),
        limit_seconds=args.peer_limit,
        device=args.device,
    )


def command_run(args: argparse.Namespace) -> None:
    models = {model.name: model.absolute() for model in args.models}
    if len(models) < len(args.models):
        raise YardstickError("two models have one name, by which cells are told apart")
    for peer in PEERS:
        if peer.name in args.methods:
            find_python(peer, peer_setting(args))  # before cells would make it side by side
    methods = {name: METHODS[name].is_calibrated for name in args.methods}
    cells = order_cells(list(models), methods, args.draws, args.tokens)

    def command(cell: Cell) -> list[str]:
        words = [sys.executable, str(Path(__file__).absolute()), "cell", str(models[cell.model])]
        words += ["--method", cell.method]
        if cell.draw is not None:
            words += ["--draw", str(cell.draw), "--tokens", str(cell.tokens)]
        words += ["--results", str(args.results.absolute()), "--device", args.device]
        words += ["--jobs", str(args.jobs), "--problems", str(args.problems)]
        words += ["--tool-turns", str(args.tool_turns), "--chats", str(args.chats)]
        words += ["--peer-limit", str(args.peer_limit), "--environments", str(args.environments.absolute())]
        given = [f"{name}={path}" for name, path in args.peer_python]
        return words + (["--peer-python", *given] if given else [])

    outcome = run_cells(cells, command, args.results, args.jobs, args.until)
    say(f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.left)} not started")
    if outcome.failed:
        raise YardstickError(f"failed: {', '.join(outcome.failed)}")


def command_cell(args: argparse.Namespace) -> None:
    is_calibrated = METHODS[args.method].is_calibrated
    if {args.draw is not None, args.tokens is not None} != {is_calibrated}:
        wants = "needs --draw and --tokens" if is_calibrated else "takes neither --draw nor --tokens"
        raise YardstickError(f"{args.method} {wants}")
    model = args.model.absolute()
    cell = Cell(model=model.name, method=args.method, draw=args.draw, tokens=args.tokens)
    if cell.name in load_records([args.results]):
        say(f"{cell.name} is done")
        return
    setting = CellSetting(
        results=args.results.absolute(),
        device=args.device,
        counts=HeldOutCounts(problems=args.problems, tool_turns=args.tool_turns, chats=args.chats),
        peers=peer_setting(args),
        jobs=args.jobs,
    )
    run_cell(cell, model, setting)


def command_report(args: argparse.Namespace) -> None:
    titles = {name: method.title for name, method in METHODS.items()}
    comparison = Comparison(load_records(args.results).values(), titles, OURS)
    if args.markdown:
        args.markdown.write_text(comparison.markdown(args.ran), encoding="utf-8")
    json.dump(comparison.as_json(), sys.stdout, indent=2)
    print()


def main() -> None:
    args = parse_args()
    torch.set_float32_matmul_precision("highest")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        args.function(args)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except (CommandError, PeerError, YardstickError) as error:
        print(f"bench_yardstick: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
