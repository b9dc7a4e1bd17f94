"""Fused experts, as transformers saves its own modules, give the release of those apart."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from release_tools import run_cli, run_quantize
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from moe4.checkpoint.source import Checkpoint
from moe4.errors import TensorError
from moe4.forward.weights import open_model
from moe4.recipe import Recipe
from moe4.verify.checks import verify

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "head_dim": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "intermediate_size": 64, "num_key_value_heads": 2},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 32,
        "q_lora_rank": 32,
        "kv_lora_rank": 64,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 64,
        "num_nextn_predict_layers": 0,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
}


def save(family: str, folder: Path) -> tuple[Path, Path]:
    """Return one random model as it is published, and as transformers' modules hold it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "apart")
    model.save_pretrained(folder / "fused", save_original_format=False)
    return folder / "apart", folder / "fused"


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_experts_are_those_apart(family: str, tmp_path: Path) -> None:
    apart, fused = save(family, tmp_path)
    assert any(name.endswith("experts.gate_up_proj") for name in Checkpoint(fused).tensors)
    plain, found = Checkpoint(apart), open_model(fused, torch.float32)[0]
    assert isinstance(found, Checkpoint)
    assert found.tensors.keys() == plain.tensors.keys()
    for name in plain.tensors:
        assert torch.equal(found.load(name), plain.load(name)), name
        assert found.tensor_sha256(name) == plain.tensor_sha256(name)


def test_their_release_is_the_same(small_source: Path, tmp_path: Path) -> None:
    apart, fused = save("qwen3_moe", tmp_path)
    shards = []
    for source in (apart, fused):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (small_source / name).exists():
                shutil.copy(small_source / name, source)
        out = tmp_path / f"{source.name}-out"
        run_quantize(source, out, Recipe(method="rtn", group_size=32))
        shards.append({path.name: path.read_bytes() for path in out.glob("*.safetensors")})
        result = verify(out, source)
        assert result.ok, result.problems
    assert shards[0] == shards[1]


def to_fp8(folder: Path) -> None:
    """Quantize a checkpoint's experts in blocks, by transformers' own operation."""
    settings = SimpleNamespace(weight_block_size=[32, 32], scale_fmt="float")
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    state = load_file(folder / "model.safetensors")
    experts = {name: tensor for name, tensor in state.items() if ".experts." in name}
    save_file({**state, **quantize.convert(experts)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(config))


def test_fp8_fused_gives_the_release_of_fp8_apart(
    small_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    apart, fused = save("qwen3_moe", tmp_path)
    shards = []
    for source in (apart, fused):
        to_fp8(source)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (small_source / name).exists():
                shutil.copy(small_source / name, source)
        out = tmp_path / f"{source.name}-out"
        settings = ["--method", "rtn", "--group-size", "32"]
        for command in (
            ["plan", str(source), *settings],
            ["quantize", str(source), str(out), *settings],
            ["verify", str(out), "--source", str(source)],
        ):
            code, _, err = run_cli(command, monkeypatch, capfd)
            assert code == 0, err
        shards.append({path.name: path.read_bytes() for path in out.glob("*.safetensors")})
    assert shards[0] == shards[1]


def test_another_axis_order_is_refused(tmp_path: Path) -> None:
    _, fused = save("qwen3_moe", tmp_path)
    state = load_file(fused / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    state[name] = state[name].transpose(1, 2).contiguous()
    save_file(state, fused / "model.safetensors")
    with pytest.raises(TensorError, match=r"down_proj must be \[4, 128, 64\] .* found BF16 \[4, 64, 128\]"):
        open_model(fused, torch.float32)
