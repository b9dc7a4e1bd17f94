"""What the tests of sizing, manifests and lint share."""

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
K2_TINY = REPOSITORY / "reference" / "k2-tiny"

# Kimi-K2's sizes, so that most tests run where the shared folder is not.
KIMI_SIZES: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "kimi_k2",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 1,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 163840,
    "max_position_embeddings": 131072,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def write_kimi_config(folder: Path) -> Path:
    """Write Kimi-K2's sizes as a config.json and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(KIMI_SIZES))
    return folder
