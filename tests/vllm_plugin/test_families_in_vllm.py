"""Releases in vLLM, through the plugin, against their decoded weights in transformers: all in float32.

Float32 leaves no room for chance: one wrong code, scale, rotary angle, softmax factor or route moves the
log-probabilities by far more than the tolerance. Kimi's prompts run past YaRN's original length of 1,024
tokens, and its release is packed by compressed-tensors; the others are quantized by moe4. Kimi-K2, Qwen3-MoE
and Mixtral run always, in groups of 128, 32 and 64; MOE4_ALL_FAMILIES=1 adds the others.
"""

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import (
    load_in_transformers,
    next_token_logprobs,
    write_dequantized_twin,
    write_random_model,
    write_rounded_release,
)
from vllm_forks import VllmForks
from vllm_plugin.families import write_source

from moe4.quantize.planning.request import Request
from moe4.quantize.run.pipeline import quantize
from moe4.recipe import Calibration, Recipe

pytestmark = pytest.mark.vllm

# Sums of up to 512 float32 terms in two orders through 5 layers: some 1e-5 of log-probabilities near 10.
TOLERANCE = 1e-3
GROUP_SIZES = {"Kimi-K2": 128, "Qwen3-MoE": 32, "Mixtral": 64}
if os.environ.get("MOE4_ALL_FAMILIES"):
    GROUP_SIZES |= {"GLM-4.5": 64, "DeepSeek-V3": 64, "DeepSeek-V2-Lite": 64, "Kimi-K2.5": 64}


@dataclass(frozen=True, kw_only=True)
class Served:
    """What vLLM said of one release."""

    release: Path
    prompts: list[list[int]]
    answers: list[dict[str, Any]]
    log: str


def write_release(folder: Path, name: str) -> Path:
    """Return a release of a random model of the family."""
    if name == "Kimi-K2":
        return write_rounded_release(write_random_model(folder / "source"), folder / "release", 128)
    source = write_source(folder / "source", name)
    documents = folder / "documents.jsonl"
    documents.write_text('{"text": "Tom has seven apples and buys twelve more. How many has he?"}\n' * 4)
    recipe = Recipe(group_size=GROUP_SIZES[name], calibration=Calibration(num_sequences=4))
    quantize(Request(source=source, out=folder / "release", recipe=recipe, calibration=documents))
    return folder / "release"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, vllm_forks: VllmForks) -> dict[str, Served]:
    """All families, served one after the other."""
    work = tmp_path_factory.mktemp("families")
    rng = random.Random(0)
    requests = []
    for name in GROUP_SIZES:
        lengths = (1, 7, 64, 300, 1300) if name == "Kimi-K2" else (1, 7, 150)
        requests.append(
            {
                "model": write_release(work / name, name),
                "prompts": [[rng.randrange(20, 2560) for _ in range(length)] for length in lengths],
                "max_tokens": 8,
                "prompt_logprobs": True,
                # Kimi-K2.5's class asks for the tokenizer.
                "engine": {"dtype": "float32", "skip_tokenizer_init": name != "Kimi-K2.5"},
            }
        )
    # Of the kernel's paths the one that keeps activations in float32 on every machine.
    environment = {"MOE4_KERNEL": "portable"}
    # vLLM 0.32's CPU worker does not start in a process that has numba, and Kimi-K2.5's images bring it.
    apart = {**environment, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    results = [
        vllm_forks.engine(request, apart if name == "Kimi-K2.5" else environment)
        for name, request in zip(GROUP_SIZES, requests, strict=True)
    ]
    return {
        name: Served(release=request["model"], prompts=request["prompts"], answers=answers, log=log)
        for name, request, (answers, log) in zip(GROUP_SIZES, requests, results, strict=True)
    }


def load_twin(served: Served, name: str, folder: Path) -> Any:
    """Return the release's weights, decoded by compressed-tensors, as a transformers model in float32."""
    from transformers import AutoModelForCausalLM, Kimi_K25ForConditionalGeneration

    twin = write_dequantized_twin(served.release, folder / "twin", torch.float32)
    if name == "Kimi-K2":
        return load_in_transformers(twin, torch.float32)
    kind = Kimi_K25ForConditionalGeneration if name == "Kimi-K2.5" else AutoModelForCausalLM
    return kind.from_pretrained(twin, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", GROUP_SIZES)
def test_release_in_vllm_equals_its_weights_in_transformers(
    served: dict[str, Served], name: str, tmp_path: Path
) -> None:
    found = served[name]
    line = f"moe4: W4A16 routed experts on CPU, kernel path portable, group size {GROUP_SIZES[name]}"
    assert line in found.log
    twin = load_twin(found, name, tmp_path)
    for prompt, answer in zip(found.prompts, found.answers, strict=True):
        expected = next_token_logprobs(twin, prompt + answer["tokens"])
        assert float(expected.std()) > 0.5  # sharp enough for a wrong weight to be seen
        for position, token in enumerate(prompt[1:]):
            logprob = answer["prompt_logprobs"][position]
            assert logprob == pytest.approx(float(expected[position, token]), abs=TOLERANCE)
        for step, best in enumerate(answer["steps"]):
            row = expected[len(prompt) - 1 + step]
            for token, logprob in best:
                assert logprob == pytest.approx(float(row[token]), abs=TOLERANCE)
            assert answer["tokens"][step] == int(row.argmax())
