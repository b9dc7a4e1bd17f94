"""Small K2-shaped checkpoints for tests: random weights, packed and unpacked by compressed-tensors.

Nothing here imports moe4: these are independent oracles for moe4's reader, writer and kernels.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE_MODEL = REPOSITORY / "reference" / "k2-tiny"
IGNORED_BY_QUANTIZATION = [
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    r"re:.*mlp\.gate$",
]


def reference_config(**changes: Any) -> dict[str, Any]:
    """Return k2-tiny's config.json with `changes` applied."""
    config: dict[str, Any] = json.loads((REFERENCE_MODEL / "config.json").read_text())
    return {**config, **changes}


def random_state(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return BF16 weights under the tensor names of Kimi's checkpoints.

    Matrices keep the scale of their input (std = gain / sqrt(fan_in)), attention is sharp enough for rotary
    positions to matter, and the head's gain keeps the two best logits apart. The correction bias is fp32.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        values = torch.randn(rows, columns, generator=generator) * (gain / math.sqrt(columns))
        state[f"{name}.weight"] = values.to(torch.bfloat16)

    def norm(name: str, size: int) -> None:
        values = 1 + 0.1 * torch.randn(size, generator=generator)
        state[f"{name}.weight"] = values.to(torch.bfloat16)

    def mlp(name: str, width: int) -> None:
        matrix(f"{name}.gate_proj", width, hidden)
        matrix(f"{name}.up_proj", width, hidden)
        matrix(f"{name}.down_proj", hidden, width)

    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, v_dim = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    matrix("model.embed_tokens", config["vocab_size"], hidden, gain=math.sqrt(hidden))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm", hidden)
        norm(f"{prefix}.post_attention_layernorm", hidden)
        matrix(f"{prefix}.self_attn.q_a_proj", q_rank, hidden)
        norm(f"{prefix}.self_attn.q_a_layernorm", q_rank)
        matrix(f"{prefix}.self_attn.q_b_proj", heads * (nope + rope), q_rank, gain=2.0)
        matrix(f"{prefix}.self_attn.kv_a_proj_with_mqa", kv_rank + rope, hidden)
        norm(f"{prefix}.self_attn.kv_a_layernorm", kv_rank)
        matrix(f"{prefix}.self_attn.kv_b_proj", heads * (nope + v_dim), kv_rank)
        matrix(f"{prefix}.self_attn.o_proj", hidden, heads * v_dim)
        if layer < config["first_k_dense_replace"]:
            mlp(f"{prefix}.mlp", config["intermediate_size"])
            continue
        matrix(f"{prefix}.mlp.gate", config["n_routed_experts"], hidden, gain=1.5)
        bias = 0.1 * torch.randn(config["n_routed_experts"], generator=generator)
        state[f"{prefix}.mlp.gate.e_score_correction_bias"] = bias
        mlp(f"{prefix}.mlp.shared_experts", config["moe_intermediate_size"] * config["n_shared_experts"])
        for expert in range(config["n_routed_experts"]):
            mlp(f"{prefix}.mlp.experts.{expert}", config["moe_intermediate_size"])
    norm("model.norm", hidden)
    matrix("lm_head", config["vocab_size"], hidden, gain=4.0)
    return state


def write_checkpoint(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    """Write a one-shard checkpoint with its index, and k2-tiny's tokenizer files where they exist."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shard = "model-00001-of-00001.safetensors"
    save_file(state, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in REFERENCE_MODEL.iterdir():
        if (
            file.suffix in {".json", ".jinja"}
            and not (folder / file.name).exists()
            and file.name != "config.json"
        ):
            shutil.copy(file, folder)
    return folder


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a checkpoint's config and all its tensors."""
    state: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        state.update(load_file(shard))
    return json.loads((folder / "config.json").read_text()), state


def write_random_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a BF16 K2-tiny with random weights; `changes` override its config."""
    config = reference_config(**changes)
    return write_checkpoint(folder, config, random_state(config, seed))


def _weight_args(group_size: int) -> dict[str, Any]:
    return {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
    }


def _scheme(group_size: int) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**_weight_args(group_size)))


def write_rounded_release(source: Path, folder: Path, group_size: int = 128) -> Path:
    """Pack the routed experts of `source` by round-to-nearest with compressed-tensors' own compressor."""
    config, state = read_checkpoint(source)
    scheme = _scheme(group_size)
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if ".mlp.experts." not in name or leaf != "weight":
            packed[name] = tensor
            continue
        groups = tensor.float().unflatten(-1, (-1, group_size))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        parts = {"weight": tensor, "weight_scale": scale.to(torch.bfloat16)}
        for leaf_name, part in PackedQuantizationCompressor.compress(parts, scheme).items():
            packed[f"{module}.{leaf_name}"] = part.contiguous()
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "weights": _weight_args(group_size),
            }
        },
        "ignore": IGNORED_BY_QUANTIZATION,
    }
    return write_checkpoint(folder, config, packed)


def write_dequantized_twin(release: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the release's weights as a plain checkpoint, decoded by compressed-tensors' own decompressor."""
    config, state = read_checkpoint(release)
    quantization = config.pop("quantization_config")
    scheme = _scheme(quantization["config_groups"]["group_0"]["weights"]["group_size"])
    plain = {name: tensor for name, tensor in state.items() if ".weight_" not in name}
    for name, words in state.items():
        if not name.endswith(".weight_packed"):
            continue
        module = name.removesuffix(".weight_packed")
        parts = {
            "weight_packed": words,
            "weight_scale": state[f"{module}.weight_scale"],
            "weight_shape": state[f"{module}.weight_shape"],
        }
        # Decoding multiplies in the scale's dtype: in float32 a code times a bfloat16 scale is exact.
        parts["weight_scale"] = parts["weight_scale"].float()
        weight = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        plain[f"{module}.weight"] = weight.to(dtype).contiguous()
    return write_checkpoint(folder, config, plain)


def load_in_transformers(folder: Path, dtype: torch.dtype) -> Any:
    """Return the checkpoint as a transformers model; its twin of `kimi_k2` is DeepSeek-V3."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = json.loads((folder / "config.json").read_text())
    config.pop("model_type")
    return DeepseekV3ForCausalLM.from_pretrained(
        folder, config=DeepseekV3Config(**config), dtype=dtype
    ).eval()


def next_token_logprobs(model: Any, tokens: list[int]) -> torch.Tensor:
    """Return float32 [tokens, vocabulary]: row i is the distribution of what follows tokens[: i + 1]."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)
