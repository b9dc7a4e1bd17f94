"""Time and memory of quantizing experts of Kimi-K2's size, beside counted operations and beside other tools.

    python benchmarks/bench_quantize.py                             one expert; JSON on stdout
    python benchmarks/bench_quantize.py --whole 4                   and whole runs on k2-tiny and a layer of 4
    python benchmarks/bench_quantize.py --whole 4 --memory 8        and peak memory with 4 and with 8 experts
    python benchmarks/bench_quantize.py --whole 4 --peers           and the peers on the same tokens
    ... --peer-python llmcompressor=/path/to/bin/python             in an environment that is there already

`--whole` and `--memory` run the command `moe4 quantize` with its defaults, each time in a process of its own,
on k2-tiny and on checkpoints made by make_k2_shaped.py (BF16 beside peers, block-FP8 for `--memory`). Peers
are the packages in fidelity/peers.py, driven as there. An expert takes seconds on an idle machine; a layer of
four and the peers take up to an hour.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_k2_shaped
import torch
from bench_experts import describe_machine
from fidelity.peers import PEERS, TORCH, Peer

from moe4.calibration.corpus import load_corpus
from moe4.gptq.columns import selected_path
from moe4.gptq.descent import descend
from moe4.gptq.factor import times_factor
from moe4.gptq.grid import search_scales
from moe4.gptq.hessian import Hessian
from moe4.gptq.products import product_dtype
from moe4.gptq.solver import AUDITED_ROWS, Audit, factorize, solve
from moe4.model.architecture import Network, build_config
from moe4.quantize.probe import probe
from moe4.recipe import Calibration, Recipe

REPOSITORY = Path(__file__).resolve().parents[1]
K2_TINY = REPOSITORY / "reference" / "k2-tiny"
GROUP_SIZE = 128

Rates = dict[torch.dtype, float]


def say(text: str) -> None:
    print(f"bench_quantize: {text}", file=sys.stderr, flush=True)


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return the least seconds of some calls, and what the last returned."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - started)
    return best, result


def gemm_rate(dtype: torch.dtype, size: int = 4096) -> float:
    """Return operations a second of the machine's matrix product, the best of five."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.mm(a, b)
    return 2 * size**3 / timed(lambda: torch.mm(a, b), 5)[0]


def count_operations(hidden: int, width: int, tokens: int, recipe: Recipe) -> dict[str, float]:
    """Return what one expert must take, multiplications and additions, by the precision they are done in.

    float32: factors, and the weighted errors of the audited rows of the weights, of round to nearest and of
    the result (half each). bfloat16, or float32 where MOE4_PRODUCTS or the machine says so: Hessians (half,
    they are symmetric), solve, its gradient, and descent, whose first sweep takes half; the tokens through
    the quantized expert, and the pool's 1,024 through gate and up.
    """
    sweeps = recipe.gptq.descent_sweeps
    products, float32 = 0.0, 0.0
    for columns, parts, rows, rows_of_x in (
        (hidden, 2, width, tokens),
        (width, 1, hidden, tokens + 1024),
    ):
        float32 += columns**3 / 3 + 3 * parts * min(rows, AUDITED_ROWS) * columns**2
        products += rows_of_x * columns**2 + parts * rows * columns**2 * (2 * sweeps + 1)
    forward = 2.0 * hidden * width * (3 * tokens + 2 * 1024)
    if product_dtype(torch.empty(0)) == torch.bfloat16:
        return {"float32": float32, "bfloat16": products + forward}
    return {"float32": float32 + products, "bfloat16": forward}


def time_stages(hidden: int, rows: int, tokens: int, recipe: Recipe, rates: Rates) -> dict[str, Any]:
    """Time the steps of gate and up's solve alone, each as a share of the matrix product's rate.

    The product's, in the dtype that the step multiplies in.
    """
    rate, fast = rates[torch.float32], rates[product_dtype(torch.empty(0))]
    generator = torch.Generator().manual_seed(0)
    gains = torch.exp(torch.randn(hidden, generator=generator))
    x = (torch.randn(tokens, hidden, generator=generator) * gains).bfloat16()
    W = torch.randn(rows, hidden, generator=generator) / hidden**0.5
    settings, stages = recipe.gptq, {}

    def stage(name: str, operations: float, function: Callable[[], Any], rate: float = fast) -> Any:
        seconds, result = timed(function)
        share = operations / seconds / rate if operations else None
        stages[name] = {"seconds": round(seconds, 3), "share_of_gemm_rate": share and round(share, 3)}
        say(f"{name}: {seconds:.2f} s" + (f", {share:.0%} of the product's rate" if share else ""))
        return result

    def accumulate() -> Hessian:
        hessian = Hessian(hidden)
        hessian.add(x)
        return hessian

    H = stage("Hessian", tokens * hidden**2, accumulate).mean()
    factor = stage("factor", hidden**3 / 3, lambda: factorize(H, settings), rate)
    scales = stage(
        "scales",
        0,
        lambda: search_scales(
            W,
            factor.importance(),
            GROUP_SIZE,
            signed=settings.signed_scales,
            candidates=settings.scale_candidates,
            shrink=settings.scale_shrink,
        ),
    )
    left = W.new_empty(W.shape[::-1], dtype=product_dtype(W))
    codes = stage("solve", rows * hidden**2, lambda: solve(W, scales, factor.R, factor.order, left))
    if settings.descent_sweeps:
        gradient = stage("gradient", rows * hidden**2, lambda: times_factor(factor.R, left, factor.order))
        operations = (2 * settings.descent_sweeps - 1) * rows * hidden**2
        sweeps, added = settings.descent_sweeps, factor.added()
        stage("descent", operations, lambda: descend(W, codes, scales, H, added, sweeps, gradient))
    audit = stage("audit of the weights", AUDITED_ROWS * hidden**2, lambda: Audit(W, H), rate)
    stage("audit of a result", AUDITED_ROWS * hidden**2, lambda: audit.error(codes, scales), rate)
    return stages


def bench_expert(hidden: int, width: int, tokens: int) -> dict[str, Any]:
    """Time one expert by the code of a run, beside the limit."""
    recipe = Recipe(calibration=Calibration(max_sequence_tokens=min(1024, tokens)))
    rates = {dtype: gemm_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    float32, bfloat16 = rates.values()
    sizes = {"layers": 1, "dense": 0, "experts": 2, "top_k": 2, "hidden": hidden, "width": width}
    network = Network(make_k2_shaped.shaped_config(**sizes), torch.bfloat16)
    found = probe(network, recipe, tokens)
    operations = count_operations(hidden, width, tokens, recipe)
    limit = operations["float32"] / float32 + operations["bfloat16"] / bfloat16
    say(f"one expert: {found.expert_seconds:.1f} s, the limit {limit:.1f} s")
    return {
        "hidden": hidden,
        "width": width,
        "tokens": tokens,
        "path": selected_path(torch.empty(0)),
        "products": str(product_dtype(torch.empty(0))).removeprefix("torch."),
        "gemm_gflops": {"float32": round(float32 / 1e9, 1), "bfloat16": round(bfloat16 / 1e9, 1)},
        "operations": operations,
        "limit_seconds": round(limit, 2),
        "expert_seconds": round(found.expert_seconds, 2),
        "gate_up_stages": time_stages(hidden, 2 * width, tokens, recipe, rates),
    }


def run_measured(command: list[str], environment: dict[str, str], log: Path) -> dict[str, Any]:
    """Run a command; return its seconds and its peak memory, or the last line of its log if it fails."""
    with log.open("w") as file:
        started, peak = time.monotonic(), 0
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        while process.poll() is None:
            peak = max(peak, peak_memory_bytes(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - started
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return {"failed": lines[-1] if lines else f"exit code {process.returncode}"}
    return {"seconds": round(seconds, 1), "peak_memory_bytes": peak}


def peak_memory_bytes(process: int) -> int:
    """Return the largest resident size a process has had; 0 once it has ended.

    The figure of wait4 would hold this process' own size, which the child has until it becomes the command.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def run_moe4(source: Path, calibration: Path | None, num_sequences: int, work: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        command = [str(Path(sys.executable).with_name("moe4")), "quantize", str(source), f"{folder}/out"]
        command += ["--num-sequences", str(num_sequences)]
        command += ["--calibration", str(calibration)] if calibration else []
        return run_measured(command, {}, work / "moe4.log")


def run_peer(peer: Peer, python: Path, model: Path, tokens: Path, work: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        script = Path(__file__).parent / "fidelity" / peer.script
        command = [str(python), str(script), str(model), str(tokens), f"{folder}/out"]
        return run_measured(command, peer.environment, work / f"{peer.name}.log")


def peer_python(peer: Peer, given: dict[str, str], work: Path) -> Path:
    """Return the Python of a peer's environment; make it if none was given."""
    if peer.name in given:
        return Path(given[peer.name])
    folder = work / f"env-{peer.name}"
    if not (folder / "installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [str(folder / "bin" / "pip"), "install", "-q", TORCH, peer.package],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (folder / "installed").touch()
    return folder / "bin" / "python"


def bench_whole(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run k2-tiny and a K2-shaped layer whole, by moe4 and the peers, one after another."""
    shaped = work / f"k2-shaped-{args.whole}"
    if not shaped.is_dir():
        sizes = {"layers": 1, "dense": 1, "experts": args.whole, "top_k": 2}
        make_k2_shaped.make(shaped, bf16=True, seed=0, hidden=args.hidden, width=args.width, **sizes)
    cases = {"k2-tiny": (K2_TINY, None), "K2-shaped layer": (shaped, shaped / "calibration.jsonl")}
    pythons = dict(item.split("=", 1) for item in args.peer_python)
    results: dict[str, Any] = {}
    for title, (source, calibration) in cases.items():
        config = json.loads((source / "config.json").read_text())
        settings = Calibration(num_sequences=args.num_sequences)
        corpus = load_corpus(source, build_config(config), settings, calibration)
        case: dict[str, Any] = {"num_tokens": corpus.num_tokens}
        say(f"{title}: moe4 on {corpus.num_tokens} tokens")
        case["moe4"] = run_moe4(source, calibration, args.num_sequences, work)
        if args.peers:
            tokens = work / "tokens.json"
            tokens.write_text(json.dumps(corpus.sequences))
            twin = make_twin(source, config, work)
            for peer in PEERS:
                say(f"{title}: {peer.title}")
                case[peer.name] = run_peer(peer, peer_python(peer, pythons, work), twin, tokens, work)
        results[title] = case
        say(json.dumps(case))
    return results


def make_twin(source: Path, config: dict[str, Any], work: Path) -> Path:
    """Return the same model under the type that transformers knows."""
    folder = Path(tempfile.mkdtemp(prefix=f"{source.name}-", dir=work))
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v3"}))
    return folder


def bench_memory(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the peak with some K2-sized experts in block-FP8 and with twice as many."""
    results = {}
    for experts in (args.memory // 2, args.memory):
        shaped = work / f"k2-shaped-fp8-{experts}"
        if not shaped.is_dir():
            sizes = {"layers": 1, "dense": 0, "experts": experts, "top_k": 2}
            make_k2_shaped.make(shaped, bf16=False, seed=0, hidden=args.hidden, width=args.width, **sizes)
        results[f"{experts} experts"] = run_moe4(
            shaped, shaped / "calibration.jsonl", args.num_sequences, work
        )
        say(f"{experts} experts: {json.dumps(results[f'{experts} experts'])}")
    return results


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
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PYTHON")
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
