"""`moe4 serve` over two processes: the tokens are those of the weights on one, in float32."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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


def test_tensor_parallel_2_gives_the_tokens_of_one_process(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two processes need two processors")
    release = write_rounded_release(REFERENCE_MODEL, tmp_path / "release", group_size=32)
    arguments = ["--tensor-parallel-size", "2", "--dtype", "float32", "--max-model-len", "1024"]
    process = subprocess.Popen(
        [*MOE4, "serve", str(release), "--port", "0", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Of the kernel's paths the one that keeps activations in float32 on every machine.
        env={**os.environ, "MOE4_KERNEL": "portable", "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        if not ready:
            pytest.fail(process.communicate()[1])
        facts = json.loads(ready)
        answers = []
        for prompt in PROMPTS:
            body = {"model": facts["model"], "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
            body |= {"ignore_eos": True, "return_token_ids": True}
            response = httpx.post(f"{facts['url']}/completions", json=body, timeout=300)
            response.raise_for_status()
            answers.append(response.json()["choices"][0]["token_ids"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    twin = load_in_transformers(
        write_dequantized_twin(release, tmp_path / "twin", torch.float32), torch.float32
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer) == NUM_TOKENS
        logprobs = next_token_logprobs(twin, prompt + answer)
        assert answer == logprobs[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
