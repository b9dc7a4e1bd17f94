"""Releases of other families in vLLM, through the plugin, against their decoded weights in transformers.

All in float32, as in test_exact_logprobs.py. Qwen3-MoE and Mixtral run always; MOE4_ALL_FAMILIES=1 adds the
others, at one start of vLLM each.
"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import run_engine
from model_fixtures import REFERENCE_MODEL, next_token_logprobs, write_dequantized_twin

from moe4.quantize.progress import ProgressReporter
from moe4.quantize.run import Request, quantize
from moe4.recipe import Calibration, Recipe

pytestmark = pytest.mark.vllm

# Sums of up to 512 float32 terms in two orders through 3 layers.
TOLERANCE = 1e-3
SIZES = {
    "vocab_size": 2560,
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "head_dim": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.1,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
ROUTED = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
}
# vLLM's MLA on CPU takes these sizes only.
MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
ALWAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-MoE": ("qwen3_moe", {"num_experts": 8, "norm_topk_prob": True}),
    "Mixtral": (
        "mixtral",
        {"num_local_experts": 8, "intermediate_size": 128, "sliding_window": None, "initializer_range": 0.1},
    ),
}
ON_REQUEST: dict[str, tuple[str, dict[str, Any]]] = {
    "GLM-4.5": ("glm4_moe", {**ROUTED, "use_qk_norm": True, "attention_bias": True}),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            **ROUTED,
            **MLA,
            "q_lora_rank": 128,
            "num_key_value_heads": 4,
            "num_nextn_predict_layers": 0,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
    ),
    "DeepSeek-V2-Lite": (
        "deepseek_v2",
        {
            **ROUTED,
            **MLA,
            "q_lora_rank": None,
            "num_key_value_heads": 4,
            "norm_topk_prob": False,
            "topk_method": "greedy",
            "scoring_func": "softmax",
        },
    ),
}
FAMILIES = {**ALWAYS, **(ON_REQUEST if os.environ.get("MOE4_ALL_FAMILIES") else {})}


def write_source(folder: Path, family: str, settings: dict[str, Any]) -> Path:
    """Have transformers save a random model, and give it k2-tiny's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE_MODEL / name, folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_release_in_vllm_equals_its_weights_in_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = write_source(tmp_path / "source", *FAMILIES[name])
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"text": "Tom has seven apples and buys twelve more. How many has he?"}\n' * 4)
    recipe = Recipe(group_size=64, calibration=Calibration(num_sequences=4))
    release = tmp_path / "release"
    with ProgressReporter() as progress:
        quantize(Request(source=source, out=release, recipe=recipe, calibration=documents), progress)
    twin_folder = write_dequantized_twin(release, tmp_path / "twin", torch.float32)
    twin = AutoModelForCausalLM.from_pretrained(twin_folder, dtype=torch.float32).eval()
    rng = random.Random(0)
    prompts = [[rng.randrange(20, 2560) for _ in range(length)] for length in (1, 7, 150)]
    answers, log = run_engine(
        release,
        prompts,
        tmp_path / "engine",
        max_tokens=8,
        prompt_logprobs=True,
        dtype="float32",
        environment={"MOE4_KERNEL": "portable"},
    )
    assert "moe4: W4A16 routed experts on CPU, kernel path portable, group size 64" in log
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = next_token_logprobs(twin, prompt + answer["tokens"])
        assert float(expected.std()) > 0.5  # sharp enough for a wrong weight to be seen
        for position, token in enumerate(prompt[1:]):
            found = answer["prompt_logprobs"][position]
            assert found == pytest.approx(float(expected[position, token]), abs=TOLERANCE)
        for step, best in enumerate(answer["steps"]):
            row = expected[len(prompt) - 1 + step]
            for token, logprob in best:
                assert logprob == pytest.approx(float(row[token]), abs=TOLERANCE)
