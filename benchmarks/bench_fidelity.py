"""What quantizing k2-tiny's experts costs, by moe4 and by others, on the same calibration tokens.

    python benchmarks/bench_fidelity.py                               JSON on stdout
    python benchmarks/bench_fidelity.py --skip-peers --markdown FILE  installs nothing; and tables in FILE

moe4 is the command `moe4 quantize` with its defaults but for the group size, with --tune also that and then
`moe4 tune` with its defaults on as many documents; the algorithms in
fidelity/algorithms.py run in this process; peers run from their packages in environments made under
--work (each takes minutes, and a gigabyte of disk). All give W4A16, symmetric, groups of 128, routed
experts only. Then the whole network runs in transformers in float32, teacher-forced on held-out text,
with each method's weights in place of the experts'. The last part quantizes generated layers
(fidelity/synthetic.py).
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_experts import describe_machine
from fidelity.accuracy import Problems
from fidelity.algorithms import ALGORITHMS
from fidelity.measure import Divergence, HeldOut, Hessians
from fidelity.network import Network, Weights
from fidelity.ours import Documents, quantize, tune
from fidelity.peers import PEERS, PeerError, PeerSetting, decode_pack_quantized, run_peer
from fidelity.report import write_markdown
from fidelity.stream import quantize_experts
from fidelity.synthetic import by_algorithm, compare, moe4_with, on_all_tokens
from fidelity.texts import MODEL, calibration_sequences, heldout_documents

from moe4.evaluate.harness.results import task_change
from moe4.evaluate.statistics import paired_test
from moe4.recipe import Calibration, Gptq

OURS = "moe4"
TUNED = "moe4-tuned"


def _change(before: list[float], after: list[float]) -> dict[str, Any]:
    """Return what changed between answers to the same questions, as plain JSON types."""
    found = task_change(paired_test(before, after), math.nan).as_dict()
    del found["stderr"]
    return found


def say(text: str) -> None:
    print(f"bench_fidelity: {text}", file=sys.stderr, flush=True)


def measure_model(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Quantize k2-tiny by every method and measure each on the held-out text."""
    sequences = calibration_sequences(MODEL, Calibration(num_sequences=args.num_sequences))
    network = Network(MODEL)
    heldout = HeldOut(network, heldout_documents(MODEL, args.problems, args.tool_turns, args.chats))
    hessians = Hessians(network, heldout.sequences)
    rows: dict[str, dict[str, Any]] = {}
    divergences: dict[str, Divergence] = {}
    problems = Problems(MODEL, args.answered)
    network.set_experts(network.original)
    correct = {"bf16": problems.correct(network)}
    say(f"BF16: {statistics.fmean(correct['bf16']):.2%} of {args.answered} problems")

    def add(name: str, title: str, weights: Weights, seconds: float, **facts: Any) -> None:
        divergence = heldout.measure(weights)
        errors = hessians.matrix_errors(weights)
        kl, agreement = divergence.mean_kl(), divergence.agreement()
        divergences[name] = divergence
        correct[name] = problems.correct(network)  # with the weights just measured
        rows[name] = {
            "title": title,
            "kl": [kl.mean, kl.standard_error],
            "agreement": [agreement.mean, agreement.standard_error],
            "accuracy": statistics.fmean(correct[name]),
            "accuracy_change": _change(correct["bf16"], correct[name]),
            "matrix_error": {
                part: statistics.fmean(error for name, error in errors.items() if f".{part}_proj" in name)
                for part in ("gate", "up", "down")
            },
            "seconds": round(seconds, 1),
            **facts,
        }
        say(
            f"{title}: KL {kl.mean:.3e} ± {kl.standard_error:.1e}, agreement {agreement.mean:.4f}, "
            f"{rows[name]['accuracy']:.2%} of the problems"
        )

    with tempfile.TemporaryDirectory(dir=work) as folder:
        release, tuned = Path(folder) / "release", Path(folder) / "tuned"
        documents = Documents(num_sequences=args.num_sequences)
        seconds = quantize(MODEL, release, documents)
        add(OURS, "moe4", decode_pack_quantized(release), seconds)
        if args.tune:
            better, more = tune(MODEL, release, tuned, documents)
            add(TUNED, "moe4, then `moe4 tune`", decode_pack_quantized(better), seconds + more)
    for name, algorithm in () if args.skip_algorithms else ALGORITHMS.items():
        started = time.monotonic()
        weights = quantize_experts(network, algorithm, sequences)
        add(name, algorithm.title, weights, time.monotonic() - started)
    failed = {}
    setting = PeerSetting(pythons={}, environments=work, limit_seconds=args.peer_limit)
    for peer in () if args.skip_peers else PEERS:
        try:
            weights, facts = run_peer(peer, setting, MODEL, sequences, work)
        except PeerError as error:
            say(f"{peer.title} failed: {error}")
            failed[peer.title] = str(error)
            continue
        add(peer.name, peer.title, weights, facts["seconds"], versions=facts["versions"])
    for name, row in rows.items():
        ratio = divergences[OURS].kl_ratio(divergences[name])
        row["moe4_kl_ratio"] = [ratio.mean, ratio.standard_error]
        row["moe4_accuracy_change"] = _change(correct[name], correct[OURS])
    return {
        "calibration": {"sequences": len(sequences), "tokens": sum(map(len, sequences))},
        "heldout": {"documents": len(divergences[OURS].kl), "tokens": heldout.num_tokens},
        "answered": {"problems": args.answered, "bf16": statistics.fmean(correct["bf16"])},
        "methods": rows,
        "failed": failed,
    }


def measure_layers(args: argparse.Namespace) -> dict[str, Any]:
    """Quantize generated layers by every method that runs in this process."""
    methods = {
        OURS: moe4_with(Gptq()),
        **{name: by_algorithm(name) for name in ALGORITHMS},
        "all-tokens": on_all_tokens,
    }
    draws = []
    for seed in range(args.layers):
        draws.append(compare(methods, seed, args.layer_tokens, args.layer_tokens // 2))
        say(f"generated layer {seed + 1} of {args.layers} done")
    return {"tokens": args.layer_tokens, "draws": draws}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-sequences", type=int, default=256, help="calibration documents")
    parser.add_argument(
        "--problems", type=int, default=400, help="held-out word problems, four to a document"
    )
    parser.add_argument(
        "--answered", type=int, default=400, help="held-out word problems to answer, at most 2,000"
    )
    parser.add_argument("--tool-turns", type=int, default=150, help="held-out tool turns")
    parser.add_argument("--chats", type=int, default=100, help="held-out chats")
    parser.add_argument("--layers", type=int, default=3, help="generated layers; 0 leaves them out")
    parser.add_argument(
        "--layer-tokens", type=int, default=6000, help="calibration tokens of a generated layer"
    )
    parser.add_argument("--tune", action="store_true", help="also run `moe4 tune` on moe4's release")
    parser.add_argument("--skip-algorithms", action="store_true", help="only moe4 and the peers")
    parser.add_argument("--skip-peers", action="store_true", help="leave out what must be installed")
    parser.add_argument("--peer-limit", type=float, default=3600, help="seconds a peer may take")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("out/fidelity"), help="environments and outputs")
    parser.add_argument("--markdown", type=Path, help="also write a table here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "model": measure_model(args, work),
        "layers": measure_layers(args) if args.layers else None,
    }
    if args.markdown:
        write_markdown(result, args.markdown)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
