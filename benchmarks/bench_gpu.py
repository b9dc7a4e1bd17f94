"""One layer of Kimi-K2's routed experts on one GPU, by the code of a run, beside what the hardware allows.

    python benchmarks/bench_gpu.py --out gpu.json                 the whole layer: 80 GB of GPU, 110 GB of RAM
    python benchmarks/bench_gpu.py --experts 16 --tokens 65536    less of it

Weights (block-FP8) and tokens (a spectrum that falls as 1/i, some large channels, clusters; a skewed router)
are made on the GPU and then lie in the host's memory, from where a read copies them as one from the page
cache does; what is written is hashed and dropped. The code of a run on a GPU does the rest. Beside it:
rates of matrix products and copies measured here, one expert on the CPU, Hessians against float64. Every part
is written to --out as it ends.
"""

import argparse
import json
import platform
import sys
import time
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu.compare import compare_cpu, compare_hessians, compare_precisions
from gpu.layer import Layer, make_layer, run_layer
from gpu.rates import measure_rates

RESULTS: dict[str, Any] = {}


def say(text: str) -> None:
    print(f"bench_gpu: {text}", file=sys.stderr, flush=True)


@contextmanager
def part(name: str, out: Path | None) -> Any:
    """Run a part of the benchmark; a failure is written down with the rest."""
    started = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        yield found
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
        import traceback

        traceback.print_exc()
        found["failed"] = str(error)[:500]
    torch.cuda.synchronize()
    RESULTS[name] = found
    say(f"{name} ({time.perf_counter() - started:.1f} s): {json.dumps(found)}")
    if out is not None:
        out.write_text(json.dumps(RESULTS, indent=2))


def describe() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    import triton

    return {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=384)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument(
        "--small", type=int, default=16, help="experts of the run without resident activations"
    )
    parser.add_argument("--skip", nargs="*", default=[], choices=["layer", "small", "cpu", "precisions"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    def step(name: str) -> AbstractContextManager[dict[str, Any]]:
        return part(name, args.out)  # type: ignore[no-any-return]

    RESULTS["machine"] = describe()
    with step("rates") as found:
        found.update(measure_rates())
    layer: Layer | None = None
    with step("made") as found:
        layer = make_layer(args.experts, args.hidden, args.width, args.tokens, args.top_k)
        found.update(layer.describe())
    assert layer is not None
    if "precisions" not in args.skip:
        with step("hessians") as found:
            found.update(compare_hessians(layer))
        with step("precisions") as found:
            found.update(compare_precisions(layer))
    if "layer" not in args.skip:
        with step("warm") as found:
            found.update(run_layer(layer, 8, resident=True))
        with step("layer") as found:
            found.update(run_layer(layer, args.experts, resident=True))
        for name, overlapped in (("overlapped", True), ("one thing after another", False)):
            with step(name) as found:
                found.update(run_layer(layer, min(64, args.experts), resident=True, overlapped=overlapped))
    if "small" not in args.skip:
        with step("24 GB") as found:
            found.update(run_layer(layer, args.small, resident=False))
    if "cpu" not in args.skip:
        with step("cpu") as found:
            found.update(compare_cpu(layer))


if __name__ == "__main__":
    main()
