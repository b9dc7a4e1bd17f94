"""Quantized checkpoints of every form that moe4 reads, as their own libraries write them."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file

BLOCK = 32
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True}
GROUPS = {"strategy": "group", "group_size": BLOCK}
CHANNELS = {"strategy": "channel"}
POWERS = {"scale_dtype": "torch.uint8"}
EXPERTS, ATTENTION, EVERYTHING = ".mlp.experts.", ".self_attn.", "_proj."
Scheme = tuple[str, dict[str, Any]]
"""Of compressed-tensors: the format, and how weights are quantized."""
WORDS: Scheme = ("pack-quantized", {**INT4, **GROUPS})
NVFP4: Scheme = ("nvfp4-pack-quantized", {**FP4, "strategy": "tensor_group", "group_size": 16})
MXFP4: Scheme = ("mxfp4-pack-quantized", {**FP4, **GROUPS, **POWERS})
FP8_CHANNELS: Scheme = ("float-quantized", {**FP8, **CHANNELS})
FP8_BLOCKS: Scheme = ("float-quantized", {**FP8, "strategy": "block", "block_structure": [BLOCK] * 2})
# What part of a weight's name says how it is quantized; the others are plain.
COMPRESSED: dict[str, dict[str, Scheme]] = {
    "ct-fp8": {EVERYTHING: FP8_CHANNELS},
    "ct-fp8-block": {EVERYTHING: FP8_BLOCKS},
    "ct-int8": {EVERYTHING: ("int-quantized", {**INT8, **CHANNELS, "symmetric": False})},
    "ct-int8-packed": {EXPERTS: ("pack-quantized", {**INT8, **GROUPS})},
    "ct-int4": {EXPERTS: WORDS},
    "ct-int4-asymmetric": {EXPERTS: ("pack-quantized", {**INT4, **GROUPS, "symmetric": False})},
    "ct-int4-ordered": {EXPERTS: ("pack-quantized", {**INT4, **GROUPS, "actorder": "group"})},
    "ct-mxfp8": {EVERYTHING: ("mxfp8-quantized", {**FP8, **GROUPS, **POWERS})},
    "ct-mxfp4": {EXPERTS: MXFP4},
    "ct-nvfp4": {EVERYTHING: NVFP4},
    "ct-mixed": {EXPERTS: WORDS, ATTENTION: FP8_BLOCKS},
    "ct-mixed-floats": {EXPERTS: NVFP4, ATTENTION: FP8_CHANNELS},
}
# Of quant_method fp8: what shares a scale, and the dtype of the scales.
FP8_SCALES: dict[str, tuple[Literal["block", "tensor", "channel"], torch.dtype]] = {
    "fp8": ("block", torch.float32),
    "fp8-exponents": ("block", torch.uint8),
    "fp8-tensor": ("tensor", torch.bfloat16),
    "fp8-channel": ("channel", torch.float32),
}
FP4_EXPERTS = "fp8-fp4-experts"
"""As DeepSeek-V4 is published."""
NAMES = (*FP8_SCALES, FP4_EXPERTS, *COMPRESSED)


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
    elif name == FP4_EXPERTS:
        pieces = _fp4_experts(state)
        config["quantization_config"] = _fp8_config("block", torch.uint8)
        config["expert_dtype"] = "fp4"
    else:
        pieces = _compressed(state, COMPRESSED[name])
        config["quantization_config"] = _compressed_config(COMPRESSED[name])
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


def _fp4_experts(state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return experts as bytes of two E2M1 codes, and FP8 blocks beside them, with scales NAME.scale."""
    pieces = _fp8({name: t for name, t in state.items() if EXPERTS not in name}, "block", torch.uint8)
    found = [
        {name.replace(".weight_scale_inv", ".scale"): tensor for name, tensor in piece.items()}
        for piece in pieces
    ]
    scheme = _scheme(*MXFP4)
    for name, tensor in sorted(state.items()):
        if EXPERTS in name:
            packed = _compress(name, tensor, MXFP4[0], scheme)
            base = name.removesuffix("weight")
            numbers, scales = packed[f"{base}weight_packed"], packed[f"{base}weight_scale"]
            found.append({name: numbers.view(torch.int8), f"{base}scale": scales})
    return found


def _scheme(form: str, weights: dict[str, Any]) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], format=form, weights=QuantizationArgs(**weights))


def _compressed(state: dict[str, torch.Tensor], parts: dict[str, Scheme]) -> list[dict[str, torch.Tensor]]:
    pieces = []
    for name, tensor in sorted(state.items()):
        chosen = next((scheme for part, scheme in parts.items() if part in name), None)
        if chosen is None or not name.endswith("_proj.weight"):
            pieces.append({name: tensor})
            continue
        pieces.append(_compress(name, tensor, chosen[0], _scheme(*chosen)))
    return pieces


def _compress(
    name: str, tensor: torch.Tensor, form: str, scheme: QuantizationScheme
) -> dict[str, torch.Tensor]:
    """Return a weight as its library's compressor stores it."""
    args = scheme.weights
    assert args is not None
    rows, columns = tensor.shape
    height = BLOCK if args.strategy == "block" else 1
    width = {"channel": columns, "block": BLOCK}.get(args.strategy, args.group_size)
    parts = {"weight": tensor}
    if args.actorder == "group":
        parts["weight_g_idx"] = (torch.randperm(columns) // width).int()
        tensor = tensor[:, torch.argsort(parts["weight_g_idx"])]
    blocks = tensor.view(rows // height, height, columns // width, width)
    low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    divisor = None
    if form == NVFP4[0]:
        divisor = generate_gparam(tensor.amin(), tensor.amax())
        parts["weight_global_scale"] = divisor.view(1)
    scale, zero_point = calculate_qparams(low, high, args, global_scale=divisor)
    parts["weight_scale"] = scale if args.type == "float" and args.num_bits == 4 else scale.to(tensor.dtype)
    if not args.symmetric:
        parts["weight_zero_point"] = zero_point
    compressor = BaseCompressor.get_value_from_registry(form)
    base = name.removesuffix("weight")
    with torch.compiler.set_stance("force_eager"):  # the library compiles its rounding, for minutes
        return {base + leaf: part for leaf, part in compressor.compress(parts, scheme).items()}


def _compressed_config(parts: dict[str, Scheme]) -> dict[str, Any]:
    ignore = ["lm_head"]
    if EVERYTHING not in parts:
        ignore += ["re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"]
        ignore += [] if ATTENTION in parts else ["re:.*self_attn.*"]
    groups = {}
    for number, (part, (form, weights)) in enumerate(parts.items()):
        pattern = "re:.*" + part.replace(".", r"\.") + ".*"
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(parts) == 1 else [pattern],
            "format": form,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
    (form, *others) = {form for form, _ in parts.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if others else form,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
    }
