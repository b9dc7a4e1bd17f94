"""Every supported family: a layer run alone, on quantized experts, gives what the whole model gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from release_tools import Forks, decompress, keep_boundaries, load_folder, run_quantize, tokenize
from safetensors.torch import load_file, save_file

from moe4.config import families
from moe4.errors import UnsupportedModelError
from moe4.recipe import ALL_TARGETS, Calibration, Recipe
from moe4.verify.checks import verify

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
    "deepseek_v3": {
        **ROUTED,
        **MLA,
        "num_nextn_predict_layers": 0,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    "dots1": {**ROUTED, "head_dim": 64},
    "glm4_moe": {**ROUTED, "head_dim": 64},
    "mixtral": {"num_local_experts": 4, "intermediate_size": 64, "sliding_window": None},
    "olmoe": {"num_experts": 4, "intermediate_size": 64},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"num_experts": 4, "head_dim": 64, "norm_topk_prob": True},
}


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == {*families.FAMILIES} - {"kimi_k2"}


# Beside those in FAMILIES, each in its plainest form: what real checkpoints of the family differ in.
VARIANTS = {
    "deepseek_v2-lite": ("deepseek_v2", {**FAMILIES["deepseek_v2"], "q_lora_rank": None}),
    "glm4_moe-4.5": ("glm4_moe", {**FAMILIES["glm4_moe"], "attention_bias": True, "use_qk_norm": True}),
    **{family: (family, settings) for family, settings in FAMILIES.items()},
}


@pytest.fixture
def family_source(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    """A random model of a family, saved by transformers, with k2-tiny's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, settings = VARIANTS[request.param]
    config = AutoConfig.for_model(family, **{**SIZES, **settings})
    torch.manual_seed(0)
    folder = tmp_path / "source"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder)
    return folder


@pytest.mark.parametrize(
    ("family_source", "targets"),
    [(name, ALL_TARGETS) for name in VARIANTS] + [("mixtral", ("experts",)), ("qwen3_moe", ("experts",))],
    indirect=["family_source"],
)
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
    assert verify(out, family_source).problems == []

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


def test_kimi_k25_keeps_its_vision_tower(
    small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
) -> None:
    """The text model's release is that of the text model alone; the rest is the source's bytes."""
    text = load_file(small_source / "model-00001-of-00001.safetensors")
    generator = torch.Generator().manual_seed(3)
    others = {
        "vision_tower.patch_embed.proj.weight": torch.randn(8, 3, 4, 4, generator=generator),
        "vision_tower.encoder.blocks.0.mlp.fc0.weight": torch.randn(32, 8, generator=generator),
        "mm_projector.proj.0.weight": torch.randn(64, 32, generator=generator),
        "mm_projector.proj.0.bias": torch.randn(64, generator=generator),
    }
    others = {name: tensor.to(torch.bfloat16) for name, tensor in others.items()}
    source = tmp_path / "source"
    shutil.copytree(small_source, source, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = {**{f"language_model.{name}": tensor for name, tensor in text.items()}, **others}
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((small_source / "config.json").read_text())
    vision = {"model_type": "kimi_k25_vision", "hidden_size": 8}
    config = {"model_type": "kimi_k25", "text_config": config, "vision_config": vision, "vocab_size": 2560}
    (source / "config.json").write_text(json.dumps(config))

    recipe = Recipe(group_size=32, calibration=Calibration(num_sequences=4))
    alone, out = tmp_path / "alone", tmp_path / "out"
    for folder, place in ((small_source, alone), (source, out)):
        answer = forks.run(folder, place, recipe, calibration)
        assert answer["ranks"][0]["code"] == 0, answer
    assert verify(out, source).problems == []
    found, expected = load_folder(out), load_folder(alone)
    assert set(found) == {f"language_model.{name}" for name in expected} | set(others)
    for name, tensor in expected.items():
        assert torch.equal(found[f"language_model.{name}"].view(torch.uint8), tensor.view(torch.uint8))
    for name, tensor in others.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
    ignore = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert {"language_model.lm_head", r"re:vision_tower\..*", r"re:mm_projector\..*"} <= set(ignore)


def test_a_nested_config_that_is_quantized_already_is_refused(small_source: Path, tmp_path: Path) -> None:
    """The published K2.5 has it there, too."""
    source = tmp_path / "source"
    shutil.copytree(small_source, source)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (source / "config.json").write_text(json.dumps({"model_type": "kimi_k25", "text_config": config}))
    with pytest.raises(UnsupportedModelError, match=r"quantized already \(gptq\)"):
        run_quantize(source, tmp_path / "out", Recipe(method="rtn", group_size=32))


def test_a_family_it_cannot_do_is_refused_by_name(small_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(small_source, source)
    (source / "config.json").write_text(json.dumps({"model_type": "gpt9"}))
    with pytest.raises(UnsupportedModelError, match="model_type 'gpt9' is not supported; moe4 supports"):
        run_quantize(source, tmp_path / "out", Recipe(method="rtn", group_size=32))
    assert not (tmp_path / "out").exists()
