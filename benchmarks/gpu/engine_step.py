"""Steps of vLLM's engine in this process, by the clock and under torch's profiler."""

import os
import statistics
import time
from pathlib import Path
from typing import Any

# vLLM's core in this process, so that the profiler sees its kernels.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

PROMPT_TOKENS = 16
SKIPPED, PROFILED = 8, 24  # steps


def make_engine(release: Path, options: dict[str, Any]) -> Any:
    """Return vLLM's offline engine; `options` are its arguments."""
    from vllm import LLM

    chosen = {"max_model_len": 4096, "skip_tokenizer_init": True, "seed": 0, **options}
    return LLM(model=str(release), **chosen).llm_engine


def add_prompts(engine: Any, prompts: list[list[int]], new_tokens: int) -> None:
    """Give the engine prompts to complete."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    for number, prompt in enumerate(prompts):
        engine.add_request(f"{time.monotonic_ns()}-{number}", {"prompt_token_ids": prompt}, sampling)


def time_decode(engine: Any, prompts: list[list[int]], new_tokens: int = 64) -> dict[str, float]:
    """Return the median seconds of a step of decoding, and its tokens per second."""
    add_prompts(engine, prompts, new_tokens)
    seconds = []
    while engine.has_unfinished_requests():
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    step = statistics.median(seconds[SKIPPED:])
    return {"step_seconds": step, "tokens_per_second": len(prompts) / step}


def time_prefill(engine: Any, prompts: list[list[int]]) -> float:
    """Return the tokens per second at which prompts are read."""
    add_prompts(engine, prompts, 1)
    began = time.perf_counter()
    while engine.has_unfinished_requests():
        engine.step()
    return sum(map(len, prompts)) / (time.perf_counter() - began)


def profile_decode(engine: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Return where steps of decoding go on the GPU (gpu.step_kernels), and the wall clock's time of a
    step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from gpu.step_kernels import read_profile, summarize_kernels

    add_prompts(engine, prompts, SKIPPED + PROFILED + 8)
    for _ in range(SKIPPED):
        engine.step()
    activities = [ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        began = time.perf_counter()
        for _ in range(PROFILED):
            engine.step()
        wall = time.perf_counter() - began
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    while engine.has_unfinished_requests():
        engine.step()
    return {"wall_microseconds": round(wall / PROFILED * 1e6, 1)} | summarize_kernels(
        read_profile(found), PROFILED
    )
