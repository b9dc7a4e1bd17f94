"""Small random checkpoints of the families that transformers has, saved by transformers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from model_fixtures import REFERENCE_MODEL
from safetensors import safe_open
from safetensors.torch import save_file

SIZES: dict[str, Any] = {
    "vocab_size": 2560,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
"""Of every family whose config has a field of the name."""
LATENT = {"num_key_value_heads": 4, "head_dim": 32}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
# With few heads of the indexer, scores are equal, and which of them are the best is chance.
INDEXER = {"index_topk": 8, "index_n_heads": 16, "index_head_dim": 64}
OVERRIDES: dict[str, dict[str, Any]] = {
    "ernie4_5_moe": {
        "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    },
    "glm4_moe_lite": {**LATENT, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "qwen3_next": LINEAR_ATTENTION,
    "qwen3_5_moe": {"text_config": {**LINEAR_ATTENTION}, "vision_config": VISION},
    "qwen3_vl_moe": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}
        },
        "vision_config": {**VISION, "deepstack_visual_indexes": [0]},
    },
    "deepseek_v32": {**LATENT, **INDEXER},
    "glm_moe_dsa": {
        **LATENT,
        **INDEXER,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "indexer_types": ["full", "full", "full"],
    },
    "gpt_oss": {
        "intermediate_size": 96,  # with 32, a matrix of gates and ups is square
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "mistral4": {**LATENT, "head_dim": None},
    "phimoe": {"intermediate_size": 32, "sliding_window": 16},
    "hunyuan_v1_moe": {"moe_topk": 2, "intermediate_size": 32},
    "flex_olmo": {"intermediate_size": 32},
    "granitemoe": {
        "intermediate_size": 32,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 3.0,
    },
    "granitemoehybrid": {
        "intermediate_size": 32,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "logits_scaling": 3.0,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
    },
    "afmoe": {"num_dense_layers": 1, "sliding_window": 16, "global_attn_every_n_layers": 2},
    "longcat_flash": {
        **LATENT,
        "num_layers": 2,
        "num_hidden_layers": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 32,
    },
    "mimo_v2_flash": {
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "step3p7": {
        "text_config": {
            "share_expert_dim": 32,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "swiglu_limits": [None, 1.0, None],
        },
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
        },
    },
    "deepseek_v4": {
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "num_key_value_heads": 1,
        "head_dim": 64,
        "partial_rotary_factor": 0.5,
        "sliding_window": 16,
        "o_groups": 2,
        "o_lora_rank": 32,
        "index_n_heads": 16,
        "index_head_dim": 64,
        "index_topk": 4,
        "hc_mult": 2,
    },
    "llama4": {
        "text_config": {
            "intermediate_size": 96,  # as for gpt_oss
            "intermediate_size_mlp": 64,
            "moe_layers": [1, 2],
            "no_rope_layers": [1, 0, 1],
            "attention_chunk_size": 16,
            "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
            "floor_scale": 4,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
    },
    "llama4_text": {"intermediate_size": 96, "intermediate_size_mlp": 64, "moe_layers": [1, 2]},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "moe_shared_expert_intermediate_size": 32,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 2,
        "chunk_size": 16,
    },
    "kimi_linear": {
        **LATENT,
        "linear_num_heads": 2,
        "linear_head_dim": 32,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
}


def make_config(family: str, **more: Any) -> Any:
    """Return transformers' config of a small model of the family; `more` are fields of it."""
    from transformers import AutoConfig

    overrides = {**OVERRIDES.get(family, {}), **more}
    default = AutoConfig.for_model(family)
    if "text_config" not in overrides:
        return AutoConfig.for_model(family, **_sizes(default, overrides))
    text = _sizes(default.text_config, overrides["text_config"])
    return AutoConfig.for_model(family, **{"tie_word_embeddings": False, **overrides, "text_config": text})


def _sizes(config: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    values = {**{name: value for name, value in SIZES.items() if hasattr(config, name)}, **overrides}
    return {name: value for name, value in values.items() if value is not None}


def make_model(family: str, dtype: torch.dtype = torch.bfloat16, **more: Any) -> Any:
    """Return a random model: norms and biases differ from 1 and 0, so that one left out is seen.

    No matrix is zero either, as some routers begin: all experts would tie.
    """
    import transformers

    config = make_config(family, **more)
    name = type(config).__name__.removesuffix("Config").removesuffix("Text")
    kind = getattr(transformers, f"{name}ForConditionalGeneration", None)
    if kind is None or kind.config_class is not type(config):
        kind = getattr(transformers, f"{name}ForCausalLM")
    torch.manual_seed(0)
    model = kind._from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1 and not name.endswith(("A_log", "dt_bias")):
                tensor += 0.1 * torch.randn_like(tensor)
            elif not tensor.any():
                tensor.normal_(std=SIZES["initializer_range"])
        for name, table in model.named_buffers():
            if name.endswith("correction_bias"):
                table += 0.1 * torch.randn_like(table)
            elif name.endswith("tid2eid"):  # of each token id, different experts
                table.copy_(torch.rand(len(table), config.n_routed_experts).argsort(1)[:, : table.shape[1]])
    return model.eval()


def write_source(folder: Path, family: str, **more: Any) -> Path:
    """Have transformers save a random model, and give it k2-tiny's tokenizer."""
    make_model(family, **more).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE_MODEL / name, folder)
    return folder


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """Return a plain checkpoint as transformers loads it."""
    import transformers

    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, architecture).from_pretrained(folder, dtype=dtype).eval()


def write_twin(release_weights: dict[str, torch.Tensor], source: Path, release: Path, folder: Path) -> Path:
    """Write a release's weights as a plain checkpoint, in float32, in the layout of its source.

    release_weights: decoded, an expert apart. Where the source holds all experts in one tensor, so does this.
    """
    config = json.loads((release / "config.json").read_text())
    del config["quantization_config"]
    stored: dict[str, torch.Size] = {}
    for shard in source.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                stored[name] = torch.Size(file.get_slice(name).get_shape())
    weights = {
        name: weight.float() if weight.is_floating_point() else weight
        for name, weight in release_weights.items()
    }
    for name in stored.keys() - weights.keys():
        is_interleaved = config["model_type"] == "gpt_oss"
        weights[name] = _fuse(name, stored[name], weights, is_interleaved=is_interleaved)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    plain = {name: weights[name].contiguous() for name in stored}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _fuse(
    name: str, shape: torch.Size, weights: dict[str, torch.Tensor], *, is_interleaved: bool
) -> torch.Tensor:
    """Return a source's tensor [experts, out, in] or [experts, in, out] of the weights of its experts."""
    layer = name[: re.search(r"layers\.\d+\.", name).end()]  # type: ignore[union-attr]
    found: dict[tuple[int, str], torch.Tensor] = {}
    for other, weight in weights.items():
        match = re.fullmatch(re.escape(layer) + r".*\.experts\.(\d+)\.(gate|up|down)_proj\.weight", other)
        if match:
            found[int(match[1]), match[2]] = weight
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    parts = {
        "gate_up_proj": ("gate", "up"),
        "input_linear": ("gate", "up"),
        "gate_proj": ("gate",),
        "up_proj": ("up",),
    }.get(leaf, ("down",))
    matrices = [[found[expert, part] for part in parts] for expert in range(shape[0])]
    joined = torch.stack([torch.cat(weights) for weights in matrices])
    if joined.shape == shape:
        return joined
    if is_interleaved and len(parts) == 2:  # gates and ups take turns
        joined = torch.stack([torch.stack(weights, dim=1).flatten(0, 1) for weights in matrices])
    return joined.transpose(1, 2)
