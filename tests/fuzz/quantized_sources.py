"""Quantized checkpoints of every form that moe4 reads, as their own libraries write them."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

BLOCK = 32
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True}
GROUPS = {"strategy": "group", "group_size": BLOCK}
CHANNELS = {"strategy": "channel"}
# Of compressed-tensors: the format, how weights are quantized, and whether only the routed experts are.
COMPRESSED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "ct-fp8": ("float-quantized", {**FP8, **CHANNELS}, False),
    "ct-fp8-block": ("float-quantized", {**FP8, "strategy": "block", "block_structure": [BLOCK] * 2}, False),
    "ct-int8": ("int-quantized", {**INT8, **CHANNELS, "symmetric": False}, False),
    "ct-int8-packed": ("pack-quantized", {**INT8, **GROUPS}, True),
    "ct-int4": ("pack-quantized", {**INT4, **GROUPS}, True),
    "ct-int4-asymmetric": ("pack-quantized", {**INT4, **GROUPS, "symmetric": False}, True),
}
# Of quant_method fp8: what shares a scale, and the dtype of the scales.
FP8_SCALES: dict[str, tuple[Literal["block", "tensor", "channel"], torch.dtype]] = {
    "fp8": ("block", torch.float32),
    "fp8-exponents": ("block", torch.uint8),
    "fp8-tensor": ("tensor", torch.bfloat16),
    "fp8-channel": ("channel", torch.float32),
}
NAMES = (*FP8_SCALES, *COMPRESSED)


def write_quantized(plain: Path, folder: Path, name: str) -> None:
    """Write the plain checkpoint of one shard in one of the forms, in three shards."""
    shutil.copytree(plain, folder)
    (shard,) = folder.glob("*.safetensors")
    state = load_file(shard)
    shard.unlink()
    config = json.loads((folder / "config.json").read_text())
    if name in FP8_SCALES:
        pieces = _fp8(state, *FP8_SCALES[name])
        config["quantization_config"] = _fp8_config(*FP8_SCALES[name])
    else:
        pieces = _compressed(state, *COMPRESSED[name])
        config["quantization_config"] = _compressed_config(*COMPRESSED[name])
    (folder / "config.json").write_text(json.dumps(config))
    _write_shards(folder, pieces)


def _write_shards(folder: Path, pieces: list[dict[str, torch.Tensor]]) -> None:
    weight_map = {}
    for number in range(3):
        shard = {key: tensor for piece in pieces[number::3] for key, tensor in piece.items()}
        file_name = f"model-{number + 1}-of-3.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _fp8(
    state: dict[str, torch.Tensor], form: Literal["block", "tensor", "channel"], dtype: torch.dtype
) -> list[dict[str, torch.Tensor]]:
    """Return each weight with its scales, all of which are 1."""
    pieces = []
    for name, tensor in sorted(state.items()):
        if not name.endswith("_proj.weight"):
            pieces.append({name: tensor})
            continue
        rows, columns = tensor.shape
        shape = {"block": (-(-rows // BLOCK), -(-columns // BLOCK)), "tensor": (), "channel": (rows, 1)}[form]
        one = 127 if dtype is torch.uint8 else 1  # the exponent 0
        suffix = "_scale_inv" if form == "block" else "_scale"
        scales = torch.full(shape, one, dtype=dtype)
        pieces.append({name: tensor.to(torch.float8_e4m3fn), f"{name}{suffix}": scales})
    return pieces


def _fp8_config(form: str, dtype: torch.dtype) -> dict[str, Any]:
    config: dict[str, Any] = {"quant_method": "fp8"}
    if form == "block":
        config["weight_block_size"] = [BLOCK, BLOCK]
    if dtype is torch.uint8:
        config["scale_fmt"] = "ue8m0"
    return config


def _compressed(
    state: dict[str, torch.Tensor], form: str, weights: dict[str, Any], experts_only: bool
) -> list[dict[str, torch.Tensor]]:
    args = QuantizationArgs.model_validate(weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    pieces = []
    for name, tensor in sorted(state.items()):
        if not name.endswith("_proj.weight") or (experts_only and ".mlp.experts." not in name):
            pieces.append({name: tensor})
            continue
        rows, columns = tensor.shape
        height = BLOCK if weights["strategy"] == "block" else 1
        width = columns if weights["strategy"] == "channel" else BLOCK
        blocks = tensor.view(rows // height, height, columns // width, width)
        scale, zero_point = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), args)
        parts = {"weight": tensor, "weight_scale": scale.to(tensor.dtype)}
        if not weights["symmetric"]:
            parts["weight_zero_point"] = zero_point
        base = name.removesuffix("weight")
        pieces.append({base + leaf: part for leaf, part in compressor.compress(parts, scheme).items()})
    return pieces


def _compressed_config(form: str, weights: dict[str, Any], experts_only: bool) -> dict[str, Any]:
    ignore = ["lm_head"]
    if experts_only:
        ignore += ["re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }
