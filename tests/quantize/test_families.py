"""Every supported family: a layer run alone, on quantized experts, gives what the whole model gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from release_tools import decompress, keep_boundaries, run_quantize, tokenize
from safetensors.torch import save_file

from moe4.model.architecture import SUPPORTED_MODEL_TYPES
from moe4.quantize.verify import verify
from moe4.recipe import Calibration, Recipe

SIZES = {
    "vocab_size": 2560,
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MLA = {
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**ROUTED, **MLA, "topk_method": "greedy"},
    "deepseek_v3": {**ROUTED, **MLA, "num_nextn_predict_layers": 0},
    "dots1": {**ROUTED, "head_dim": 64},
    "glm4_moe": {**ROUTED, "head_dim": 64},
    "olmoe": {"num_experts": 4, "intermediate_size": 64},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"num_experts": 4, "head_dim": 64, "norm_topk_prob": True},
}


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == set(SUPPORTED_MODEL_TYPES.values())


@pytest.fixture
def family_source(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    """A random model of a family, saved by transformers, with k2-tiny's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(request.param, **{**SIZES, **FAMILIES[request.param]})
    torch.manual_seed(0)
    folder = tmp_path / "source"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder)
    return folder


@pytest.mark.parametrize("family_source", FAMILIES, indirect=True)
@pytest.mark.parametrize("targets", [("experts",), ("experts", "attention", "shared_experts", "dense_mlps")])
def test_calibrated_is_served(
    family_source: Path,
    targets: Any,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoModelForCausalLM

    kept = keep_boundaries(monkeypatch)
    out = tmp_path / "out"
    settings = Calibration(num_sequences=4, compute_dtype="float32")
    report = run_quantize(
        family_source, out, Recipe(group_size=32, targets=targets, calibration=settings), calibration
    )
    assert report["summary"]["mean_error"] < 0.7 * report["summary"]["mean_rtn_error"]
    assert verify(out, family_source)["problems"] == []

    plain = tmp_path / "plain"
    plain.mkdir()
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    weights = {name: weight.float() for name, weight in decompress(out, exact=True).items()}
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    sequences = tokenize(family_source, calibration, 4)
    with torch.inference_mode():
        outputs = [model.model(torch.tensor([ids]), output_hidden_states=True) for ids in sequences]
    expected = torch.cat([output.hidden_states[2][0] for output in outputs])
    found = torch.frombuffer(bytearray(kept["hidden-00002.bin"]), dtype=torch.float32).view(expected.shape)
    distance = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert distance.max() < 1e-5
