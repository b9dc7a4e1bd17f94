"""Tokens per second of a release in vLLM on a CPU beside its source in BF16, and where time goes.

    python benchmarks/bench_serving.py SOURCE RELEASE [--batches 1 8 64] [--new-tokens 16] [--json FILE]

Each model is served by vLLM's offline engine, eager, in a process of its own; they run in turn, again and
again, since machines grow faster and slower. All prompts are read in one step of the engine (prefill) and
then a token for each is computed at a step (decode). Where time goes is measured by the clock around the
parts of the model and of vLLM. A step's floor is the time to read its weights once, at the rate at which
memory is read, measured before each run. The models' memory adds up.
"W4A16, vLLM's MLA" is the release without the plugin's layout of MLA's folded matrices.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.weights import step_bytes

MODELS = ("W4A16", "W4A16, rest int8", "W4A16, vLLM's MLA", "BF16")

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


def serve(name: str, folder: str, options: argparse.Namespace, pipe: Any) -> None:
    """Run the model at each batch that comes through `pipe`, and send what it took."""
    import torch
    from vllm import LLM, SamplingParams

    from moe4.kernels.inspection import measure_read_rate

    if "vLLM's MLA" in name:
        import moe4.vllm_plugin.cpu.mla

        moe4.vllm_plugin.cpu.mla.lay_out_for_products = lambda layer: None
    loading: dict[str, Any] = {}
    if "rest int8" in name:
        loading = {"load_format": "moe4", "model_loader_extra_config": {"rest": "int8"}}
    began = time.perf_counter()
    llm = LLM(
        model=folder,
        **loading,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_batched_tokens=max(2048, max(options.batches) * options.prompt_tokens),
        enforce_eager=not options.compiled,
        enable_prefix_caching=False,
        max_num_seqs=max(options.batches),
        seed=0,
    )
    pipe.send({"start_seconds": time.perf_counter() - began, "threads": torch.get_num_threads()})
    clock = Clock()
    if not options.compiled:
        attach(clock, llm)
    rng = random.Random(0)
    sampling = SamplingParams(
        temperature=0.0, max_tokens=options.new_tokens, ignore_eos=True, detokenize=False
    )
    for batch in iter(pipe.recv, None):
        rate = measure_read_rate()
        for number in range(batch):
            prompt = [rng.randrange(20, 2560) for _ in range(options.prompt_tokens)]
            llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
        clock.seconds.clear()
        steps = []
        while llm.llm_engine.has_unfinished_requests():
            clock.running = bool(steps)  # it sees decoding only
            began = time.perf_counter()
            llm.llm_engine.step()
            steps.append(time.perf_counter() - began)
        clock.running = False
        assert len(steps) == options.new_tokens, "the prompts were not read in one step"
        pipe.send({"prefill": steps[0], "steps": steps[1:], "spent": dict(clock.seconds), "read_rate": rate})


def shares(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return the share of each part in the time of decoding."""
    spent = {name: sum(run["spent"].get(name, 0.0) for run in runs) for name in runs[0]["spent"]}
    total = sum(sum(run["steps"]) for run in runs)
    inner = sum(spent.get(name, 0.0) for name in ("attention", "dense MLP", "MoE", "norms"))
    model = spent.pop("model")
    spent["rest of the model"] = model - inner
    spent["engine and scheduler"] = total - model - spent.get("head", 0.0) - spent.get("sampling", 0.0)
    return {name: seconds / total for name, seconds in sorted(spent.items())}


def summarize(
    batch: int, runs: list[dict[str, Any]], others: list[dict[str, Any]], read_bytes: float, prompt: int
) -> dict[str, Any]:
    """Return one model's figures at a batch; `others` are the runs of the last model, each beside its own.

    `read_bytes` is what a step of decoding reads of the weights.
    """
    decodes = [seconds for run in runs for seconds in run["steps"]]
    ratios = [
        statistics.median(other["steps"]) / statistics.median(run["steps"])
        for run, other in zip(runs, others, strict=True)
    ]
    rates = [run["read_rate"] for run in runs]
    row: dict[str, Any] = {
        "batch": batch,
        "prefill_tokens_per_second": batch * prompt / statistics.median(run["prefill"] for run in runs),
        "decode_tokens_per_second": batch / statistics.median(decodes),
        "decode_step_seconds": [min(decodes), statistics.median(decodes), max(decodes)],
        "times_last_model": [min(ratios), statistics.median(ratios), max(ratios)],
        "read_bytes_per_second": [min(rates), statistics.median(rates), max(rates)],
        "reading_seconds": read_bytes / statistics.median(rates),
    }
    if runs[0]["spent"]:
        row["decode_shares"] = shares(runs)
    return row


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start the models, run them in turn at each batch, and return the figures of each."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, results, configs = {}, [], {}, {}
    for name in options.models:
        folder = options.source if name == "BF16" else options.release
        pipes[name], inner = context.Pipe()
        process = context.Process(target=serve, args=(name, str(folder), options, inner), daemon=True)
        process.start()
        processes.append(process)
        inner.close()
        configs[name] = json.loads((folder / "config.json").read_text())
        results[name] = {**pipes[name].recv(), "rows": []}
    for batch in options.batches:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pipes}
        for _ in range(1 + options.repeats):
            for name, pipe in pipes.items():
                pipe.send(batch)
                runs[name].append(pipe.recv())
        for name, found in runs.items():
            others = runs[options.models[-1]]
            read_bytes = sum(step_bytes(configs[name], batch, 1.0 if "int8" in name else 2.0).values())
            row = summarize(batch, found[1:], others[1:], read_bytes, options.prompt_tokens)
            results[name]["rows"].append(row)
        if options.json:  # a run that is cut short keeps what it has measured
            options.json.write_text(json.dumps(results, indent=1))
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return results


def show(name: str, last: str, figures: dict[str, Any]) -> None:
    """Print one model's figures."""
    print(f"\n{name}: {figures['threads']} threads, engine made in {figures['start_seconds']:.1f} s")
    for row in figures["rows"]:
        steps, ratios, rates = (
            row[key] for key in ("decode_step_seconds", "times_last_model", "read_bytes_per_second")
        )
        print(
            f"  batch {row['batch']:3d}: prefill {row['prefill_tokens_per_second']:8.1f} tokens/s, "
            f"decode {row['decode_tokens_per_second']:8.2f} tokens/s "
            f"(a step: {steps[1] * 1e3:.1f} ms, {steps[0] * 1e3:.1f} to {steps[2] * 1e3:.1f}; "
            f"reading the weights at {rates[1] / 1e9:.1f} GB/s: {row['reading_seconds'] * 1e3:.1f})"
        )
        print(
            f"      decodes at {ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[2]:.2f}) times the rate of {last}"
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
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["W4A16", "BF16"])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="torch.compile; no shares then")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    results = measure(options)
    for name, figures in results.items():
        show(name, options.models[-1], figures)


if __name__ == "__main__":
    main()
