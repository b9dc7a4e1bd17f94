"""Tokens per second of a release in vLLM on a CPU beside its source in BF16, and where time goes.

    python benchmarks/bench_serving.py SOURCE RELEASE [--batches 1 8 64] [--new-tokens 16] [--json FILE]

Each model is served by vLLM's offline engine, eager, in a process of its own, one after the other. For each
batch, all prompts are read in one step of the engine (prefill) and then a token for each is computed at a
step (decode). Where time goes is measured by the clock around the parts of the model and of vLLM.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# vLLM's core in this process, so that its parts can be timed.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

# What the clock is put around, by the class of the layer or by the method, and what is inside what.
LAYERS = {
    "MultiHeadLatentAttentionWrapper": "attention",
    "MLAAttention": "attention: MLA itself",
    "DeepseekV2MLP": "dense MLP",
    "DeepseekV2MoE": "MoE",
    "GateLinear": "router's matrix",
    "RMSNorm": "norms",
}
INSIDE = {
    "attention: MLA itself": "attention",
    "routed experts": "MoE",
    "choosing experts": "MoE",
    "router's matrix": "MoE",
    "shared experts": "MoE",
}


class Clock:
    """Seconds spent in parts of the program, by name."""

    def __init__(self) -> None:
        self.running = False
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside: list[str] = []

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed while the clock runs.

        A part within a part of the same name is not timed, nor are norms within attention.
        """

        def timed(*arguments: Any, **options: Any) -> Any:
            hidden = name in self.inside or (name == "norms" and "attention" in self.inside)
            if not self.running or hidden:
                return function(*arguments, **options)
            label = "shared experts" if name == "dense MLP" and "MoE" in self.inside else name
            self.inside.append(name)
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[label] += time.perf_counter() - began
                self.inside.pop()

        return timed


def attach(clock: Clock, llm: Any) -> None:
    """Put the clock around the parts of the engine's model."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    runner = worker.model_runner
    model = runner.model
    for module in model.modules():
        name = LAYERS.get(type(module).__name__)
        if name:
            module.forward = clock.around(name, module.forward)
        if type(module).__name__ == "RoutedExperts":
            module.quant_method.apply = clock.around("routed experts", module.quant_method.apply)
        if hasattr(module, "router") and hasattr(module.router, "select_experts"):
            module.router.select_experts = clock.around("choosing experts", module.router.select_experts)
    model.compute_logits = clock.around("head", model.compute_logits)
    model.forward = clock.around("model", model.forward)
    runner.sampler.forward = clock.around("sampling", runner.sampler.forward)


def serve(folder: str, options: argparse.Namespace, answers: Any) -> None:
    """Measure one model; put its figures into `answers`."""
    import torch
    from vllm import LLM, SamplingParams

    began = time.perf_counter()
    llm = LLM(
        model=folder,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_batched_tokens=max(2048, max(options.batches) * options.prompt_tokens),
        enforce_eager=not options.compiled,
        enable_prefix_caching=False,
        max_num_seqs=max(options.batches),
        seed=0,
    )
    start_seconds = time.perf_counter() - began
    clock = Clock()
    if not options.compiled:
        attach(clock, llm)
    rng = random.Random(0)

    def run(batch: int) -> tuple[float, list[float]]:
        """Return the seconds of reading the prompts, and of each step after; the clock sees the latter."""
        sampling = SamplingParams(
            temperature=0.0, max_tokens=options.new_tokens, ignore_eos=True, detokenize=False
        )
        for number in range(batch):
            prompt = [rng.randrange(20, 2560) for _ in range(options.prompt_tokens)]
            llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
        steps = []
        while llm.llm_engine.has_unfinished_requests():
            clock.running = bool(steps)
            began = time.perf_counter()
            llm.llm_engine.step()
            steps.append(time.perf_counter() - began)
        clock.running = False
        assert len(steps) == options.new_tokens, "the prompts were not read in one step"
        return steps[0], steps[1:]

    rows = []
    for batch in options.batches:
        run(batch)
        clock.seconds.clear()
        runs = [run(batch) for _ in range(options.repeats)]
        decodes = [seconds for _, steps in runs for seconds in steps]
        prefill = statistics.median(seconds for seconds, _ in runs)
        row: dict[str, Any] = {
            "batch": batch,
            "prefill_tokens_per_second": batch * options.prompt_tokens / prefill,
            "decode_tokens_per_second": batch / statistics.median(decodes),
            "decode_step_seconds": [min(decodes), statistics.median(decodes), max(decodes)],
        }
        if not options.compiled:
            row["decode_shares"] = shares(clock, sum(decodes))
        rows.append(row)
    answers.put({"threads": torch.get_num_threads(), "start_seconds": start_seconds, "rows": rows})


def shares(clock: Clock, total: float) -> dict[str, float]:
    """Return the share of each part in the time of decoding, `total` seconds."""
    spent = dict(clock.seconds)
    inner = sum(spent.get(name, 0.0) for name in ("attention", "dense MLP", "MoE", "norms"))
    model = spent.pop("model")
    spent["rest of the model"] = model - inner
    spent["engine and scheduler"] = total - model - spent.get("head", 0.0) - spent.get("sampling", 0.0)
    return {name: seconds / total for name, seconds in sorted(spent.items())}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one model, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=serve, args=(str(folder), options, answers))
    process.start()
    while process.is_alive() and answers.empty():
        process.join(0.2)
    if answers.empty():
        sys.exit(f"vLLM did not serve {folder}")
    figures: dict[str, Any] = answers.get()
    process.join()
    return figures


def show(name: str, figures: dict[str, Any]) -> None:
    """Print one model's figures."""
    print(f"\n{name}: {figures['threads']} threads, engine made in {figures['start_seconds']:.1f} s")
    for row in figures["rows"]:
        steps = row["decode_step_seconds"]
        print(
            f"  batch {row['batch']:3d}: prefill {row['prefill_tokens_per_second']:8.1f} tokens/s, "
            f"decode {row['decode_tokens_per_second']:8.2f} tokens/s "
            f"(a step: {steps[1] * 1e3:.1f} ms, {steps[0] * 1e3:.1f} to {steps[2] * 1e3:.1f})"
        )
        for part, share in row.get("decode_shares", {}).items():
            print(f"      {share:6.1%}  {part}" + (f" (in {INSIDE[part]})" if part in INSIDE else ""))


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the checkpoint in BF16")
    parser.add_argument("release", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--models", nargs="+", default=["W4A16", "BF16"])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="torch.compile; no shares then")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    results = {}
    for name, folder in (("W4A16", options.release), ("BF16", options.source)):
        if name not in options.models:
            continue
        results[name] = measure(folder, options)
        show(name, results[name])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
