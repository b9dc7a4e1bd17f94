"""A token's time with `--rest` bfloat16, int8 and int4: three servers of one release, which take turns.

    python benchmarks/make_k2_release.py k2x32 --experts 32
    python benchmarks/bench_rest_serving.py k2x32 [--rounds 5] [--rests bfloat16 int8 int4]

All servers are in memory at once, so give the release few experts. In each round every server decodes 16
tokens at batch 1; the other servers wait. Ratios are of one round's times. JSON on stdout.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench_loading import FIRST_PROMPT, Server, memory_of, running, visit_every_expert

TOKENS = 16


def start(release: Path, rest: str, stack: ExitStack) -> Server:
    """Start a server; it is stopped with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    options = argparse.Namespace(extra={"rest": rest}, limit_gb=0)
    server = stack.enter_context(running(release, "moe4", folder, options))
    visit_every_expert(server)
    return server


def token_seconds(server: Server) -> float:
    """Return the time of a token after the first."""
    begun = server.complete(FIRST_PROMPT, 1)
    return (server.complete(FIRST_PROMPT, TOKENS + 1) - begun) / TOKENS


def summarize(times: list[float], base: list[float]) -> dict[str, Any]:
    """Return median and range of a server's times, and of the first server's beside them."""
    ratios = [other / own for other, own in zip(base, times, strict=True)]
    return {
        "token_seconds": statistics.median(times),
        "range": [min(times), max(times)],
        "times_as_fast": statistics.median(ratios),
        "times_as_fast_range": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--rests", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {rest: [] for rest in arguments.rests}
    with ExitStack() as stack:
        servers = {rest: start(arguments.release, rest, stack) for rest in arguments.rests}
        for number in range(arguments.rounds + 1):
            for rest, server in servers.items():
                seconds = token_seconds(server)
                if number:  # the first warms up
                    times[rest].append(seconds)
        memory = {
            rest: memory_of(server.process.pid, arguments.release)["own"] for rest, server in servers.items()
        }
    base = times[arguments.rests[0]]
    result = {
        rest: {**summarize(times[rest], base), "own_memory_bytes": memory[rest]} for rest in arguments.rests
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
