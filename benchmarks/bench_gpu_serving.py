"""A release on a GPU through `moe4 serve`: tokens per second beside what the hardware allows.

    python benchmarks/make_k2_release.py k2 --layers 4 --experts 384 --device cuda     # 27 GB, a minute
    python benchmarks/bench_gpu_serving.py k2 --out serving.json                       # the server, over HTTP
    python benchmarks/bench_gpu_serving.py k2 --out profile.json --profile             # the engine, in this
    process

The rates of memory and of bf16 products are measured first, in this process. Then a server is started as a
user starts it, further options for vLLM after `--`. The release's expected answers, where it has them, say
whether it is right. Streamed completions of prompts of token ids give decode at each batch, and prefill. A
step of decoding reads the experts that its tokens are expected to choose, all other weights but the
embedding, and the cache: its share is that over the measured rate of reading, the rates of all its GPUs
together. --profile takes vLLM's offline engine instead, measures the same without HTTP, and says by kinds of
kernels where a step at --profile-batch goes. Each part is written to --out as it ends. Without a GPU there
are no rates and no shares.
"""

import argparse
import fcntl
import json
import math
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.client import measure_decode, measure_prefill, random_prompts
from serving.server import start_server
from serving.weights import cache_bytes, step_bytes, token_operations

PROMPT_TOKENS = 16
RESULTS: dict[str, Any] = {}


def keep(name: str, value: Any, out: Path | None) -> None:
    """Print a part and write all there are."""
    RESULTS[name] = value
    print(f"bench_gpu_serving: {name}: {json.dumps(value)}", file=sys.stderr, flush=True)
    if out is not None:
        out.write_text(json.dumps(RESULTS, indent=1))


def num_gpus(vllm: list[str]) -> int:
    """Return how many GPUs a server's options take: the product of its parallel sizes."""
    kinds = ("tensor", "pipeline", "data")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for kind in kinds:
        parser.add_argument(f"--{kind}-parallel-size", type=int, default=1, dest=kind)
    sizes = vars(parser.parse_known_args(vllm)[0])
    return math.prod(sizes[kind] for kind in kinds)


def measure_hardware() -> dict[str, Any]:
    """Return the GPU's name and what it reads and multiplies a second; nothing without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    reading, products = measure_reading(), measure_products()
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "read_bytes_per_second": reading,
        "bf16_operations_per_second": products,
    }


def measure_reading() -> float:
    """Return bytes a second, the better of a sum over 8 GiB and of a copy's reads and writes."""
    import torch
    from gpu.rates import seconds

    words = torch.empty(2 << 30, dtype=torch.int32, device="cuda").random_()
    half = len(words) // 2
    sums = words.nbytes / seconds(lambda: words.sum(dtype=torch.int32))
    return max(sums, words.nbytes / seconds(lambda: words[:half].copy_(words[half:])))


def measure_products(size: int = 8192) -> float:
    """Return operations a second of a square product in bf16."""
    import torch
    from gpu.rates import seconds

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b)


def decode_row(config: dict[str, Any], batch: int, tokens: int, found: dict[str, float]) -> dict[str, Any]:
    """Return a batch's figures with the bytes a step reads and their share; `tokens` are generated."""
    parts = step_bytes(config, batch)
    parts["cache"] = cache_bytes(config, batch, PROMPT_TOKENS + tokens / 2)
    total = sum(parts.values())
    row: dict[str, Any] = {"batch": batch, **found, "read_bytes": parts}
    rate = RESULTS["hardware"].get("read_bytes_per_second")
    if rate:
        rate *= RESULTS["options"]["num_gpus"]
        row["floor_seconds"] = total / rate
        row["share_of_bandwidth"] = total / rate / found["step_seconds"]
    return row


def prefill_row(config: dict[str, Any], count: int, length: int, rate: float) -> dict[str, Any]:
    """Return prefill's figures with its share of the rate of products."""
    row: dict[str, Any] = {"prompts": count, "prompt_tokens": length, "tokens_per_second": rate}
    products = RESULTS["hardware"].get("bf16_operations_per_second")
    if products:
        products *= RESULTS["options"]["num_gpus"]
        row["share_of_products"] = rate * token_operations(config) / products
    return row


def bench_server(arguments: argparse.Namespace, config: dict[str, Any]) -> None:
    """Measure a server of `moe4 serve`."""
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "server.log"
        options = ["--max-model-len", "4096", *arguments.vllm]
        with start_server(arguments.release, log, options) as server, alone(arguments.lock):
            keep("start_seconds", server.seconds, arguments.out)
            keep("probe", ask_probe(arguments.release, server.url), arguments.out)
            rows: list[dict[str, Any]] = []
            for batch in arguments.batches:
                measure_decode(server.url, server.model, batch, 8, seed=batch)
                found = [
                    measure_decode(server.url, server.model, batch, arguments.new_tokens, 1000 * run + batch)
                    for run in range(1, 1 + arguments.repeats)
                ]
                found.sort(key=lambda run: run["step_seconds"])
                middle = found[len(found) // 2]
                spread = [found[0]["step_seconds"], found[-1]["step_seconds"]]
                row = decode_row(config, batch, arguments.new_tokens, middle)
                rows.append({**row, "step_seconds_least_most": spread})
                keep("decode", rows, arguments.out)
            rows = []
            for count, length in ((1, arguments.prompt_tokens), (16, arguments.prompt_tokens)):
                rates = [
                    measure_prefill(server.url, server.model, count, length, seed=7 * run + count)
                    for run in range(1 + arguments.repeats)
                ]
                rows.append(prefill_row(config, count, length, statistics.median(rates[1:])))
                keep("prefill", rows, arguments.out)


@contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Hold a lock, so that of several servers that start together one is measured at a time."""
    if lock is None:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ask_probe(release: Path, url: str) -> dict[str, Any] | None:
    """Hold a server to the release's expected answers; None if the release has none."""
    if not (release / "moe4-probe.json").is_file():
        return None
    command = [sys.executable, "-m", "moe4", "probe", str(release), "--url", url]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit_code": found.returncode, "says": found.stdout.strip().splitlines()[-8:]}


def bench_engine(arguments: argparse.Namespace, config: dict[str, Any]) -> None:
    """Measure vLLM's offline engine in this process, and profile its steps."""
    from gpu.engine_step import make_engine, profile_decode, time_decode, time_prefill

    began = time.perf_counter()
    engine = make_engine(arguments.release, json.loads(arguments.engine_options))
    keep("start_seconds", time.perf_counter() - began, arguments.out)
    rows = []
    for batch in arguments.batches:
        time_decode(engine, random_prompts(batch, PROMPT_TOKENS, batch), 16)
        found = time_decode(engine, random_prompts(batch, PROMPT_TOKENS, 1000 + batch), arguments.new_tokens)
        rows.append(decode_row(config, batch, arguments.new_tokens, found))
        keep("decode", rows, arguments.out)
    length = arguments.prompt_tokens
    time_prefill(engine, random_prompts(16, length, 1))
    rate = time_prefill(engine, random_prompts(16, length, 2))
    keep("prefill", [prefill_row(config, 16, length, rate)], arguments.out)
    for batch in arguments.profile_batch:
        found = profile_decode(engine, random_prompts(batch, PROMPT_TOKENS, 2000 + batch))
        rate = RESULTS["hardware"].get("read_bytes_per_second")
        if rate:
            parts = step_bytes(config, batch)
            found["floor_microseconds"] = {name: round(size / rate * 1e6, 1) for name, size in parts.items()}
        keep(f"profile, batch {batch}", found, arguments.out)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--prompt-tokens", type=int, default=1900, help="of the prompts that measure prefill")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    parser.add_argument("--lock", type=Path, help="measure while holding this file's lock")
    parser.add_argument("--hardware", type=Path, help="a former run's --out, whose rates are taken")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--profile-batch", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--engine-options", default="{}", help="JSON of the engine's arguments, with --profile"
    )
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:split])
    arguments.vllm = given[split + 1 :]
    config = json.loads((arguments.release / "config.json").read_text())
    if arguments.hardware is None:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            hardware = process.submit(measure_hardware).result()  # its memory is the server's again
    else:
        hardware = json.loads(arguments.hardware.read_text())["hardware"]
    keep("hardware", hardware, arguments.out)
    options = {
        "vllm": arguments.vllm,
        "engine": arguments.engine_options,
        "num_gpus": num_gpus(arguments.vllm),
    }
    keep("options", options, arguments.out)
    (bench_engine if arguments.profile else bench_server)(arguments, config)


if __name__ == "__main__":
    main()
