"""Whole runs: seconds and peak memory of `moe4 quantize` and of peers, each in a process of its own."""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import make_k2_shaped
from fidelity.peers import PEERS, Peer, PeerSetting, find_python, make_twin
from fidelity.texts import MODEL as K2_TINY

from moe4.calibration.corpus import load_corpus
from moe4.config import parse_config
from moe4.model.architecture import build_config
from moe4.recipe import Calibration
from quantizing.expert import say


def run_measured(command: list[str], environment: dict[str, str], log: Path) -> dict[str, Any]:
    """Run a command; return its seconds and its peak memory, or the last line of its log if it fails."""
    with log.open("w") as file:
        started, peak = time.monotonic(), 0
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=log.parent,  # GPTQModel leaves a folder of logs where it runs
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
        command += ["--group-size", "128", "--num-sequences", str(num_sequences)]
        command += ["--calibration", str(calibration)] if calibration else []
        return run_measured(command, {}, work / "moe4.log")


def run_peer(peer: Peer, python: Path, model: Path, tokens: Path, work: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        script = Path(__file__).parents[1] / "fidelity" / peer.script
        command = [str(python), str(script), str(model), str(tokens), f"{folder}/out"]
        return run_measured(command, peer.environment, work / f"{peer.name}.log")


def bench_whole(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run k2-tiny and a K2-shaped layer whole, by moe4 and the peers, one after another."""
    shaped = work / f"k2-shaped-{args.whole}"
    if not shaped.is_dir():
        sizes = {"layers": 1, "dense": 1, "experts": args.whole, "top_k": 2}
        make_k2_shaped.make(shaped, bf16=True, seed=0, hidden=args.hidden, width=args.width, **sizes)
    cases = {
        "k2-tiny": (K2_TINY, Path("reference")),
        "K2-shaped layer": (shaped, shaped / "calibration.jsonl"),
    }
    setting = PeerSetting(pythons=dict(args.peer_python), environments=work, limit_seconds=math.inf)
    results: dict[str, Any] = {}
    for title, (source, calibration) in cases.items():
        config = json.loads((source / "config.json").read_text())
        settings = Calibration(num_sequences=args.num_sequences)
        corpus = load_corpus(source, build_config(parse_config(config)), settings, calibration)
        case: dict[str, Any] = {"num_tokens": corpus.num_tokens}
        say(f"{title}: moe4 on {corpus.num_tokens} tokens")
        case["moe4"] = run_moe4(source, calibration, args.num_sequences, work)
        if args.peers:
            tokens = work / "tokens.json"
            tokens.write_text(json.dumps(corpus.sequences))
            twin = make_twin(source, work)
            for peer in PEERS:
                say(f"{title}: {peer.title}")
                case[peer.name] = run_peer(peer, find_python(peer, setting), twin, tokens, work)
        results[title] = case
        say(json.dumps(case))
    return results


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
