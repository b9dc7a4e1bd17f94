"""Small random checkpoints of other families than Kimi-K2's, as transformers saves them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from model_fixtures import REFERENCE_MODEL
from safetensors.torch import load_file, save_file

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
DEEPSEEK_V3 = {
    **ROUTED,
    **MLA,
    "q_lora_rank": 128,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-MoE": ("qwen3_moe", {"num_experts": 8, "norm_topk_prob": True}),
    "Mixtral": ("mixtral", {"num_local_experts": 8, "intermediate_size": 128, "sliding_window": None}),
    "GLM-4.5": ("glm4_moe", {**ROUTED, "use_qk_norm": True, "attention_bias": True}),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK_V3),
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


def write_source(folder: Path, name: str) -> Path:
    """Have transformers save a random model, and give it k2-tiny's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    if name == "Kimi-K2.5":
        return _write_kimi_k25(folder)
    family, settings = FAMILIES[name]
    config = AutoConfig.for_model(family, **{**SIZES, **settings})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    _copy_tokenizer(folder)
    return folder


def _write_kimi_k25(folder: Path) -> Path:
    """Write transformers' weights under the names that Moonshot publishes; its own export has others."""
    from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration

    vision = {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
    config = Kimi_K25Config(
        text_config={**SIZES, **DEEPSEEK_V3, "model_type": "deepseek_v3"},
        vision_config=vision,
        projection_hidden_size=64,
        image_token_id=19,
        video_token_id=18,
        tie_word_embeddings=False,
    )
    Kimi_K25ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    file = folder / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        name = name.replace("language_model.model.blocks.", "language_model.model.layers.")
        name = name.replace("vision_tower.encoder.patch_embed.", "vision_tower.patch_embed.")
        renamed[name.removeprefix("model.")] = tensor
    save_file(renamed, file, metadata={"format": "pt"})
    saved = json.loads((folder / "config.json").read_text())
    saved["architectures"] = ["KimiK25ForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(saved))
    images = {"in_patch_limit": 64, "patch_size": 4, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images |= {"merge_kernel_size": 2, "patch_limit_on_one_side": 8, "in_patch_limit_each_frame": 64}
    images |= {"fixed_output_tokens": None, "in_patch_limit_video": None, "temporal_merge_kernel_size": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": images}))
    _copy_tokenizer(folder)
    return folder


def _copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE_MODEL / name, folder)
