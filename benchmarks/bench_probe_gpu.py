"""Check releases' expected answers on GPUs, in every way they may be served there.

    python benchmarks/bench_probe_gpu.py RELEASE... --output probe_gpu.json
    python benchmarks/bench_probe_gpu.py RELEASE... --only "eager;graphs" --output probe_gpu.json

Each way is a `vllm serve` of its own, which takes 15 to 25 s to start without CUDA graphs and a minute with.
Ways that need more GPUs than there are, are left out. `fault` ways run without moe4's plugin: where a rank
has one group of gate and up or less, vLLM 0.26 to 0.33 gives wrong answers there, and the check must say so.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe4.probe import check

START_SECONDS = 240
EAGER = ("--enforce-eager",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to serve."""

    name: str
    options: tuple[str, ...]
    num_gpus: int = 1
    environment: dict[str, str] = field(default_factory=dict)


TENSOR_2, EXPERT_2 = ("--tensor-parallel-size", "2"), ("--enable-expert-parallel",)
NO_PLUGIN = {"VLLM_PLUGINS": ""}
WAYS = (
    Way(name="eager", options=EAGER),
    Way(name="graphs", options=()),
    Way(name="emulation", options=(*EAGER, "--moe-backend", "emulation")),
    Way(name="no prefix cache", options=(*EAGER, "--no-enable-prefix-caching")),
    Way(name="float16", options=(*EAGER, "--dtype", "float16")),
    Way(name="fp8 cache", options=(*EAGER, "--kv-cache-dtype", "fp8")),
    Way(name="fault: no plugin", options=EAGER, environment=NO_PLUGIN),
    Way(name="tensor parallel 2", options=(*EAGER, *TENSOR_2), num_gpus=2),
    Way(name="tensor parallel 2, graphs", options=TENSOR_2, num_gpus=2),
    Way(name="expert parallel 2", options=(*EAGER, *TENSOR_2, *EXPERT_2), num_gpus=2),
    Way(
        name="fault: no plugin, tensor parallel 2",
        options=(*EAGER, *TENSOR_2),
        num_gpus=2,
        environment=NO_PLUGIN,
    ),
)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> bool:
    """Return True when the server answers, False if it ends or takes too long."""
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return True
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    return False


def serve_and_check(release: Path, way: Way, options: argparse.Namespace) -> dict[str, Any]:
    """Start a server, check it twice (the second time with a filled prefix cache), and stop it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(release)]
    command += ["--port", str(port), "--max-model-len", "2048", "--dtype", "bfloat16"]
    command += ["--gpu-memory-utilization", str(options.memory)]
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, *way.options],
            env={**os.environ, **way.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if not wait_until_ready(server, url):
                log.seek(0)
                return {"error": log.read()[-3000:].decode("utf-8", "replace")}
            ready = time.monotonic()
            expected = check.read_expected(str(release))
            results = [check.check(expected, check.Server(url)) for _ in range(2)]
            seconds = {"start": round(ready - began, 1), "two_checks": round(time.monotonic() - ready, 2)}
            return {"first": results[0], "second": results[1], "seconds": seconds}
        except check.CheckError as error:
            return {"error": str(error)}
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(server.pid, number)
                    server.wait(20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


def describe_gpus() -> list[str]:
    """Return the names of the GPUs."""
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def main() -> None:
    """Run all ways and write one JSON file, after each of them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is a session of its own: end it, too
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", help="names of ways, with semicolons between them; all if not given")
    parser.add_argument("--memory", type=float, default=0.5, help="share of a GPU's memory")
    options = parser.parse_args()
    wanted = options.only.split(";") if options.only else [way.name for way in WAYS]
    import vllm

    gpus = describe_gpus()
    report: dict[str, Any] = {"gpus": gpus, "vllm": vllm.__version__, "results": []}
    for release in options.releases:
        for way in WAYS:
            if way.name not in wanted or way.num_gpus > len(gpus):
                continue
            entry = serve_and_check(release, way, options)
            report["results"].append({"release": release.name, "way": way.name, **entry})
            options.output.write_text(json.dumps(report, indent=1))
            said = check.describe(entry["first"]) if "first" in entry else entry["error"][-500:]
            print(f"{release.name}, {way.name}: {said}", flush=True)


if __name__ == "__main__":
    main()
