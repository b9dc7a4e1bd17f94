"""`moe4 serve` over two processes: the tokens are those of the weights on one, in float32.

Tensor parallelism runs always; MOE4_ALL_PARALLEL=1 adds the other arrangements, at one start of vLLM each.
Eager ones have no compiler: vLLM would compile what masks tokens of the other rank's share of the vocabulary,
and what ranks log-probabilities.
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from model_fixtures import (
    REFERENCE_MODEL,
    load_in_transformers,
    next_token_logprobs,
    write_dequantized_twin,
    write_rounded_release,
)

pytestmark = pytest.mark.vllm

MOE4 = [sys.executable, "-c", "from moe4.cli.main import main; main()"]
PROMPTS = [[20, 41, 300, 77, 912], list(range(40, 140)), [7 + 13 * step % 2500 for step in range(300)]]
NUM_TOKENS = 24
NO_COMPILER = "/nonexistent/c++"
TENSOR = ["--tensor-parallel-size", "2"]
DATA = ["--data-parallel-size", "2"]
EXPERTS = ["--enable-expert-parallel"]
COMPILED = ["--no-enforce-eager"]
COPIED = ["--load-format", "auto"]
ARRANGEMENTS: dict[str, list[str]] = {"tensor": TENSOR}
if os.environ.get("MOE4_ALL_PARALLEL"):
    ARRANGEMENTS |= {
        "tensor, copied": TENSOR + COPIED,
        "experts": TENSOR + EXPERTS,
        "experts, copied": TENSOR + EXPERTS + COPIED,
        "data": DATA,
        "data and experts": DATA + EXPERTS,
        "pipeline": ["--pipeline-parallel-size", "2"],
        "compiled": COMPILED,
        "tensor, compiled": TENSOR + COMPILED,
    }


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k2-tiny in groups of 32, of which each of two ranks gets two in the experts' inner width."""
    folder = tmp_path_factory.mktemp("release")
    return write_rounded_release(REFERENCE_MODEL, folder / "release", group_size=32)


@pytest.fixture(scope="module")
def twin(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The release's weights, decoded, in transformers."""
    folder = tmp_path_factory.mktemp("twin") / "twin"
    return load_in_transformers(write_dequantized_twin(release, folder, torch.float32), torch.float32)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_two_processes_give_the_tokens_of_one(
    release: Path, twin: Any, arrangement: str, tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two processes need two processors")
    log = tmp_path / "vllm.log"
    arguments = [*ARRANGEMENTS[arrangement], "--dtype", "float32", "--max-model-len", "1024"]
    # Of the kernel's paths the one that keeps activations in float32 on every machine.
    environment = {**os.environ, "MOE4_KERNEL": "portable", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if "compiled" not in arrangement:
        environment |= {"CXX": NO_COMPILER, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    process = subprocess.Popen(
        [*MOE4, "serve", str(release), "--port", "0", "--json", "--log", str(log), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        if not ready:
            pytest.fail(process.communicate()[1])
        facts = json.loads(ready)

        def complete(prompt: list[int]) -> list[int]:
            body = {"model": facts["model"], "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
            body |= {"ignore_eos": True, "return_token_ids": True, "logprobs": 2, "prompt_logprobs": 0}
            response = httpx.post(f"{facts['url']}/completions", json=body, timeout=300)
            response.raise_for_status()
            choice = response.json()["choices"][0]
            assert len(choice["logprobs"]["token_logprobs"]) == NUM_TOKENS
            assert len(choice["prompt_logprobs"]) == len(prompt)
            tokens: list[int] = choice["token_ids"]
            return tokens

        # Twice and together, so that two data parallel engines both get some.
        with ThreadPoolExecutor(2 * len(PROMPTS)) as pool:
            answers = list(pool.map(complete, 2 * PROMPTS))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert "may wait for a compilation" not in log.read_text()
    for prompt, answer in zip(2 * PROMPTS, answers, strict=True):
        assert len(answer) == NUM_TOKENS
        logprobs = next_token_logprobs(twin, prompt + answer)
        assert answer == logprobs[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
