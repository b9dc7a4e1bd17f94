"""A release under `--load-format moe4` and under vLLM's own loader: time to the first token, memory, speed.

    python benchmarks/bench_loading.py RELEASE [--formats moe4 auto] [--caches cold warm] [--servers 2]

Each run is a server in processes of its own, from its command to the first token of its first answer. Before
it, the files are driven out of the page cache (cold) or read into it (warm). Then long prompts visit
every expert, and the memory of the server's processes is added up: what is their own (anonymous), and their
part of mapped files, among them the release's. With --servers 2, a second server starts beside the first, and
both are added up. With --limit-gb each server's processes, their page cache included, get only so much memory
(needs root), and the prompts that visit every expert are left out. JSON on stdout.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from memory_limit import drop_from_cache, join_group, peak_bytes, remove_group

from moe4.checkpoint.header import read_shard
from moe4.serve.host import free_port

FIRST_PROMPT = [5, 6, 7, 8]
READ_BYTES = 16 << 20


def shards_of(release: Path) -> list[Path]:
    """Return the release's files of tensors."""
    return sorted(release.glob("*.safetensors"))


def expert_bytes(release: Path) -> tuple[int, int]:
    """Return bytes of routed experts and of everything else."""
    experts = rest = 0
    for file in shards_of(release):
        for name, tensor in read_shard(file).tensors.items():
            if ".mlp.experts." in name and not name.endswith("_shape"):
                experts += tensor.spec.num_bytes
            else:
                rest += tensor.spec.num_bytes
    return experts, rest


def set_cache(release: Path, state: str) -> None:
    """Drive the release's files out of the page cache, or read them into it."""
    drop_from_cache(shards_of(release))
    if state == "warm":
        for file in shards_of(release):
            with file.open("rb", buffering=0) as opened:
                while opened.read(READ_BYTES):
                    pass


def processes_under(root: int) -> list[int]:
    """Return a process and all that it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory_of(root: int, release: Path) -> dict[str, int]:
    """Return bytes of memory of a process and all that it started; shared pages count in parts (PSS).

    `release` is what is mapped of the release's files, and a part of `files`.
    """
    names = {"Pss_Anon": "own", "Pss_File": "files", "Pss_Shmem": "shared_memory", "Pss": "pss", "Rss": "rss"}
    total = dict.fromkeys(names.values(), 0)
    for process in processes_under(root):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
            key, value = line.split(":")
            if key in names:
                total[names[key]] += int(value.split()[0]) << 10
        total["release"] = total.get("release", 0) + mapped_of(process, release)
    return total


def mapped_of(process: int, release: Path) -> int:
    """Return a process's part of the release's files in memory (PSS)."""
    total, inside = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        key, _, value = line.partition(" ")
        if "-" in key:
            inside = str(release.resolve()) in value
        elif inside and key == "Pss:":
            total += int(value.split()[0]) << 10
    return total


def disk_bytes_of(root: int) -> int:
    """Return bytes that a process and all that it started fetched from a disk."""
    texts = [Path(f"/proc/{process}/io").read_text() for process in processes_under(root)]
    return sum(
        int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("read_bytes")
    )


class Server:
    """vLLM's server of the release, from its command to its first token."""

    def __init__(self, release: Path, load_format: str, folder: Path, options: argparse.Namespace) -> None:
        port = free_port("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{port}/v1/completions"
        self.log = folder / f"{load_format}-{port}.log"
        command = [sys.executable, "-m", "moe4.vllm_plugin.cli", "serve", str(release), "--port", str(port)]
        command += ["--load-format", load_format, "--served-model-name", "m", "--max-model-len", "1024"]
        command += ["--dtype", "bfloat16", "--enforce-eager", "--no-enable-prefix-caching"]
        if options.extra and load_format == "moe4":
            command += ["--model-loader-extra-config", json.dumps(options.extra)]
        limit = int(options.limit_gb * 1e9)
        began = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ},
                preexec_fn=(lambda: join_group(limit)) if limit else None,
            )
        while True:
            try:
                self.complete(FIRST_PROMPT, 1)
                break
            except urllib.error.URLError:
                if self.process.poll() is not None:
                    sys.exit(f"vLLM ended: {self.log.read_text()[-3000:]}")
                time.sleep(0.05)
        self.first_token_seconds = time.perf_counter() - began

    def complete(self, prompt: list[int], max_tokens: int) -> float:
        """Return the seconds an answer of exactly `max_tokens` took."""
        body = {"model": "m", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        request = urllib.request.Request(
            self.url,
            json.dumps({**body, "temperature": 0}).encode(),
            {"Content-Type": "application/json"},
        )
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer.read()
        return time.perf_counter() - began

    def seconds_per_token(self) -> float:
        """Return the time of a token after the first, the best of three."""
        return min((self.complete(FIRST_PROMPT, 17) - self.complete(FIRST_PROMPT, 1)) / 16 for _ in range(3))

    def logged(self) -> dict[str, Any]:
        """Return what the log says of loading."""
        text = self.log.read_text()
        found: dict[str, Any] = {}
        weights = re.search(r"Loading weights took ([\d.]+) seconds", text)
        if weights:
            found["weights_seconds"] = float(weights[1])
        warned = re.search(r"moe4: (the experts take .*)", text)
        if warned:
            found["warning"] = warned[1].strip()
        mapped = re.search(r"moe4: mapped .* in ([\d.]+) seconds; copied (.*)", text)
        if mapped:
            found |= {"mapping_seconds": float(mapped[1]), "experts_copied": mapped[2].strip()}
        return found

    def stop(self) -> None:
        """End it and wait for it."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(*arguments: Any) -> Iterator[Server]:
    """Yield a server that runs while inside."""
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.stop()


def visit_every_expert(server: Server) -> None:
    """Send prompts of random tokens, so that every expert is computed with."""
    rng = random.Random(0)
    for _ in range(2):
        server.complete([rng.randrange(20, 2560) for _ in range(512)], 1)


def measure(release: Path, load_format: str, cache: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start the server, and another beside it if that was asked for; return the figures."""
    set_cache(release, cache)
    result: dict[str, Any] = {"format": load_format, "cache": cache}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = []
        for number in range(options.servers if cache == options.caches[-1] else 1):
            server = stack.enter_context(running(release, load_format, Path(folder), options))
            servers.append(server)
            key = "first" if number == 0 else f"server_{number + 1}"
            result[key] = {
                "first_token_seconds": round(server.first_token_seconds, 2),
                **server.logged(),
                "from_disk_bytes": disk_bytes_of(server.process.pid),
            }
            if not options.limit_gb:
                visit_every_expert(server)
            result[key]["seconds_per_token"] = server.seconds_per_token()
            memory = [memory_of(one.process.pid, release) for one in servers]
            result[f"memory_with_{number + 1}"] = {
                kind: sum(one[kind] for one in memory) for kind in memory[0]
            }
        if options.limit_gb:
            result["group_peak_bytes"] = peak_bytes()
    remove_group()
    return result


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--formats", nargs="+", default=["moe4", "auto"])
    parser.add_argument("--caches", nargs="+", default=["cold", "warm"], choices=["cold", "warm"])
    parser.add_argument("--servers", type=int, default=1, help="in the last state of the cache")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit-gb", type=float, default=0)
    parser.add_argument("--extra", type=json.loads, default={}, help="options of --load-format moe4, as JSON")
    options = parser.parse_args()
    experts, rest = expert_bytes(options.release)
    runs = []
    for _ in range(options.repeats):
        for cache in options.caches:
            for load_format in options.formats:
                runs.append(measure(options.release, load_format, cache, options))
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"expert_bytes": experts, "other_bytes": rest, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
