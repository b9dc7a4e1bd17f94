"""`moe4 serve` on a CPU with the processors it binds, beside vLLM's own choice, in turn.

    python benchmarks/make_k2_release.py k2 --layers 4 --experts 32
    python benchmarks/bench_binding.py k2 --json binding.json [--rest bfloat16 int8] [--repeats 3]

For each kind of rest the servers of all --choices start, and then run in turn, while the others are stopped
(SIGSTOP), so that a machine that grows faster and slower treats them alike: decode of prompts of 16 tokens at
each batch, one prompt of 512 tokens, and both again beside a busy loop. Ratios are of runs beside each other.
The floor is what a step reads of the weights at the rate at which memory is read, measured before each round.
`other` is the processor time that the server's other processes (the API, the scheduler) take a step.
Memory: the release once, the rest and some 3 GB for each server; two servers at a time take 12 GB.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.client import measure_decode, measure_prefill
from serving.server import Server, start_server
from serving.weights import step_bytes

# vLLM's own choice was the default before moe4 serve made one.
CHOICES: dict[str, dict[str, str]] = {
    "vLLM's": {"VLLM_CPU_OMP_THREADS_BIND": "auto"},
    "moe4's": {},
    "bound alone": {"MOE4_YIELD_PROCESSORS": "0"},
}
PREFILL_TOKENS = 512


@contextlib.contextmanager
def busy_loop() -> Iterator[None]:
    """Run a program beside the server that always wants a processor."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def other_seconds(server: Server) -> float:
    """Return the processor time that the server's processes other than the worker have taken."""
    ticks = 0
    for process in server.processes():
        name, _, fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")
        if not name.endswith("VLLM::Worker"):
            ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def run_once(server: Server, batches: list[int], tokens: list[int], seed: int) -> dict[str, float]:
    """Return a server's seconds: a step of decoding at each batch, and reading a prompt."""
    found = {}
    server.resume()
    try:
        for batch, new_tokens in zip(batches, tokens, strict=True):
            before = other_seconds(server)
            step = measure_decode(server.url, server.model, batch, new_tokens, seed)["step_seconds"]
            found[f"decode {batch}"] = step
            found[f"other {batch}"] = (other_seconds(server) - before) / new_tokens
        found["prefill"] = PREFILL_TOKENS / measure_prefill(server.url, server.model, 1, PREFILL_TOKENS, seed)
    finally:
        server.pause()
    return found


def run_rounds(
    servers: dict[str, Server], arguments: argparse.Namespace, *, busy: bool
) -> dict[str, dict[str, list[float]]]:
    """Return, by choice and figure, the seconds of each round."""
    from moe4.kernels.inspection import measure_read_rate

    batches = arguments.busy_batches if busy else arguments.batches
    tokens = [max(8, 32 // max(1, batch // 8)) for batch in batches]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in servers}
    for number in range(arguments.repeats + (not busy)):
        rate = measure_read_rate()
        with busy_loop() if busy else contextlib.nullcontext():
            time.sleep(1.0)
            for name, server in servers.items():
                seconds = run_once(server, batches, tokens, seed=100 * number + 10_000 * busy)
                if number or busy:  # the first round warms up
                    for what, value in {**seconds, "read_bytes_per_second": rate}.items():
                        found[name].setdefault(what, []).append(value)
    return found


def summarize(
    found: dict[str, dict[str, list[float]]], config: dict[str, Any], rest: str
) -> dict[str, dict[str, Any]]:
    """Return medians and ranges, the floors of decoding, and ratios to the first choice, run by run."""
    first = next(iter(found.values()))
    result: dict[str, dict[str, Any]] = {}
    for name, figures in found.items():
        rate = statistics.median(figures["read_bytes_per_second"])
        rows: dict[str, Any] = {"read_bytes_per_second": rate}
        for what, values in figures.items():
            if what.startswith("other"):
                rows[what] = statistics.median(values)
            elif what != "read_bytes_per_second":
                ratios = [base / value for base, value in zip(first[what], values, strict=True)]
                rows[what] = {
                    "seconds": [min(values), statistics.median(values), max(values)],
                    "times_as_fast": [min(ratios), statistics.median(ratios), max(ratios)],
                }
            if what.startswith("decode"):
                parts = step_bytes(config, int(what.split()[1]), 1.0 if rest == "int8" else 2.0)
                rows[what]["floor_seconds"] = sum(parts.values()) / rate
        result[name] = rows
    return result


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all; write figures to --json as they come."""
    config = json.loads((arguments.release / "config.json").read_text())
    results: dict[str, Any] = {}
    for rest in arguments.rest:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            servers = {}
            for name in arguments.choices:
                options = ["--max-model-len", "1024", "--rest", rest, "--no-enable-prefix-caching"]
                log = folder / f"{len(servers)}.log"
                server = stack.enter_context(start_server(arguments.release, log, options, CHOICES[name]))
                server.pause()
                servers[name] = server
            for busy in (False, True):
                figures = summarize(run_rounds(servers, arguments, busy=busy), config, rest)
                results[f"{rest}, beside a busy loop" if busy else rest] = figures
                show(rest, busy, figures)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1))
    return results


def show(rest: str, busy: bool, figures: dict[str, dict[str, Any]]) -> None:
    """Print the figures of one kind of rest as rows of a table."""
    print(f"\nrest {rest}{', beside a busy loop' if busy else ''}")
    for name, rows in figures.items():
        print(f"  {name}: memory is read at {rows['read_bytes_per_second'] / 1e9:.1f} GB/s")
        for what, row in rows.items():
            if not isinstance(row, dict):
                continue
            least, middle, most = (1e3 * value for value in row["seconds"])
            ratios = " to ".join(
                f"{value:.2f}" for value in (row["times_as_fast"][0], row["times_as_fast"][2])
            )
            floor = f", floor {1e3 * row['floor_seconds']:.1f}" if "floor_seconds" in row else ""
            batch = what.removeprefix("decode ")
            speed = PREFILL_TOKENS / middle * 1e3 if what == "prefill" else int(batch) / middle * 1e3
            other = rows.get(f"other {batch}")
            print(
                f"    {what:10} {middle:8.1f} ms ({least:.1f} to {most:.1f}{floor}), {speed:.1f} tokens/s, "
                f"{row['times_as_fast'][1]:.2f} ({ratios}) times as fast"
                + (f", other {1e3 * other:.2f} ms" if other is not None else "")
            )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=["vLLM's", "moe4's"])
    parser.add_argument("--rest", nargs="+", choices=["bfloat16", "int8"], default=["bfloat16", "int8"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--busy-batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
