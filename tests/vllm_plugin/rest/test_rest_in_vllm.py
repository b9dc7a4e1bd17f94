"""`rest: int4` in vLLM, on a release that holds attention and the dense layers in INT4 too."""

import random
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import REFERENCE_MODEL
from transformers import AutoTokenizer
from vllm_forks import VllmForks

from k2tiny import corpus
from moe4.quantize.planning.request import Request
from moe4.quantize.run.pipeline import quantize
from moe4.recipe import ALL_TARGETS, Recipe

pytestmark = pytest.mark.vllm


def test_a_release_of_all_targets_runs_on_our_kernel(tmp_path: Path, vllm_forks: VllmForks) -> None:
    """Its codes give what they give in vLLM's own kernel, but for rounding and for the head's INT4."""
    release = tmp_path / "release"
    quantize(Request(source=REFERENCE_MODEL, out=release, recipe=Recipe(method="rtn", targets=ALL_TARGETS)))
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    rng = random.Random(3)
    prompts = [tokenizer.encode(corpus.draw_document(rng).text)[:length] for length in (7, 80)]
    request = {"model": release, "prompts": prompts, "max_tokens": 8, "prompt_logprobs": True}
    engines: list[dict[str, Any]] = [
        {"load_format": "moe4"},
        {"load_format": "moe4", "model_loader_extra_config": {"rest": "int4"}},
    ]
    results = [vllm_forks.engine({**request, "engine": engine}) for engine in engines]
    (vllms, vllms_log), (ours, log) = results
    assert "beside the routed experts" not in vllms_log
    # Three of attention in each of five layers, two of the dense layer and of each layer's shared experts.
    assert "25 matrices beside the routed experts run on the release's own INT4 codes" in log
    assert "1 matrix beside the routed experts rounded to int4 in groups of 128" in log
    differences = [
        abs(left - right)
        for one, other in zip(vllms, ours, strict=True)
        for left, right in zip(one["prompt_logprobs"], other["prompt_logprobs"], strict=True)
    ]
    assert 0 < sum(differences) / len(differences) < 0.1
