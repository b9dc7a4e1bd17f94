"""Quantized sources: written by their libraries, and decoded to what those give, bit for bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from test_source import write_shard
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moe4.checkpoint.encodings import E2M1
from moe4.checkpoint.source import Checkpoint
from moe4.errors import Moe4Error, TensorError, UnsupportedModelError
from moe4.verify.decoding import SourceDecoder

ROWS, COLUMNS = 96, 256
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True}
NVFP4 = ("nvfp4-pack-quantized", {**FP4, "strategy": "tensor_group", "group_size": 16})
MXFP4 = ("mxfp4-pack-quantized", {**FP4, "strategy": "group", "group_size": 32})
MXFP8 = ("mxfp8-quantized", {**FP8, "strategy": "group", "group_size": 32})
ORDERED = {**INT4, "strategy": "group", "group_size": 32, "actorder": "group"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8 tensor": ("float-quantized", {**FP8, "strategy": "tensor"}),
    "fp8 channel": ("float-quantized", {**FP8, "strategy": "channel"}),
    "fp8 block": ("float-quantized", {**FP8, "strategy": "block", "block_structure": [32, 64]}),
    "fp8 group": ("float-quantized", {**FP8, "strategy": "group", "group_size": 64}),
    "int8 tensor": ("int-quantized", {**INT8, "strategy": "tensor"}),
    "int8 channel": ("int-quantized", {**INT8, "strategy": "channel"}),
    "int8 asymmetric": ("int-quantized", {**INT8, "strategy": "channel", "symmetric": False}),
    "int8 packed": ("pack-quantized", {**INT8, "strategy": "group", "group_size": 32}),
    "int8 packed channel": ("pack-quantized", {**INT8, "strategy": "channel"}),
    "int4 of 32": ("pack-quantized", {**INT4, "strategy": "group", "group_size": 32}),
    "int4 of 128": ("pack-quantized", {**INT4, "strategy": "group", "group_size": 128}),
    "int4 channel": ("pack-quantized", {**INT4, "strategy": "channel"}),
    "int4 asymmetric": (
        "pack-quantized",
        {**INT4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "int4 in an order": ("pack-quantized", ORDERED),
    "int4 in an order, asymmetric": ("pack-quantized", {**ORDERED, "symmetric": False}),
    "int8 in an order": ("pack-quantized", {**ORDERED, "num_bits": 8}),
}


@dataclass
class Made:
    """A matrix as compressed-tensors stores it, its config, and as compressed-tensors decodes it."""

    tensors: dict[str, Tensor]
    quantization: dict[str, Any]
    decoded: Tensor


def make(form: str, weights: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Made:
    torch.manual_seed(0)
    W = (torch.randn(ROWS, COLUMNS) + 0.3).to(dtype)
    args = QuantizationArgs.model_validate(weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    down, across = {
        "tensor": (1, 1),
        "channel": (ROWS, 1),
        "group": (ROWS, COLUMNS // weights.get("group_size", COLUMNS)),
        "block": (ROWS // 32, COLUMNS // 64),
    }[weights["strategy"]]
    blocks = W.view(down, ROWS // down, across, COLUMNS // across)
    scale, zero_point = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), args)
    scale = scale.to(dtype)
    if weights["strategy"] == "tensor":
        scale, zero_point = scale.view(1), zero_point.view(1)
    state = {"weight": W, "weight_scale": scale}
    if "actorder" in weights:
        state["weight_g_idx"] = (torch.randperm(COLUMNS) // weights["group_size"]).int()
    if not weights["symmetric"]:
        state["weight_zero_point"] = zero_point
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, scheme)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return Made(
        tensors={f"a.{leaf}": tensor for leaf, tensor in packed.items()},
        quantization={"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": group}},
        decoded=compressor.decompress(packed, scheme)["weight"],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_decodes_as_compressed_tensors_does(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made = make(*CASES[case], dtype)
    write_shard(tmp_path, made.tensors, made.quantization)
    found = Checkpoint(tmp_path)
    assert list(found.tensors) == ["a.weight"]
    assert found.tensors["a.weight"].spec.shape == (ROWS, COLUMNS)
    loaded = found.load("a.weight")
    assert loaded.dtype is torch.float32
    assert torch.equal(loaded.to(made.decoded.dtype), made.decoded)
    assert torch.equal(torch.cat(list(found.iterate_rows("a.weight"))), loaded)
    assert SourceDecoder(found).differs("a.weight", loaded) is None
    assert "decodes other weights" in str(SourceDecoder(found).differs("a.weight", loaded * 2))


def random_bytes(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8)


def random_parts(form: str) -> dict[str, Tensor]:
    """Return a weight of random bytes, of every code and of scales as far apart as finite ones are."""
    torch.manual_seed(1)
    if form == "mxfp8-quantized":
        numbers = torch.randn(ROWS, COLUMNS).to(torch.float8_e4m3fn)
        return {"weight": numbers, "weight_scale": random_bytes(ROWS, COLUMNS // 32, high=245)}
    packed = {"weight_packed": random_bytes(ROWS, COLUMNS // 2)}
    if form == "mxfp4-pack-quantized":
        return {**packed, "weight_scale": random_bytes(ROWS, COLUMNS // 32, high=250)}
    scales = random_bytes(ROWS, COLUMNS // 16, high=127).view(torch.float8_e4m3fn)
    return {**packed, "weight_scale": scales, "weight_global_scale": torch.tensor([2713.7])}


@pytest.mark.parametrize("case", [NVFP4, MXFP4, MXFP8], ids=lambda case: case[0])
def test_floats_of_few_bits_decode_as_compressed_tensors_does(
    case: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    form, weights = case
    parts = random_parts(form)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    write_shard(
        tmp_path,
        {f"a.{leaf}": tensor for leaf, tensor in parts.items()},
        {"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": group}},
    )
    found = Checkpoint(tmp_path)
    assert found.tensors["a.weight"].spec.shape == (ROWS, COLUMNS)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs.model_validate(weights))
    theirs = BaseCompressor.get_value_from_registry(form).decompress(dict(parts), scheme)["weight"]
    loaded = found.load("a.weight")
    assert torch.equal(loaded.to(theirs.dtype), theirs)
    assert len(loaded.unique()) > 16
    assert SourceDecoder(found).differs("a.weight", loaded) is None
    assert "decodes other weights" in str(SourceDecoder(found).differs("a.weight", loaded * 2))


def test_a_global_scale_divides_group_scales(tmp_path: Path) -> None:
    """By the words of the format, without a library: code k of byte i, its group's scale, and the divisor."""
    form, weights = NVFP4
    parts = random_parts(form)
    group = {"targets": ["Linear"], "weights": weights}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": group}}
    write_shard(tmp_path, {f"a.{leaf}": tensor for leaf, tensor in parts.items()}, config)
    loaded = Checkpoint(tmp_path).load("a.weight")
    for row, column in ((0, 0), (3, 1), (95, 254), (40, 255)):
        byte = int(parts["weight_packed"][row, column // 2])
        scale = parts["weight_scale"][row, column // 16].float() / parts["weight_global_scale"][0]
        assert loaded[row, column] == E2M1[byte >> 4 if column % 2 else byte & 0xF] * scale


@pytest.mark.parametrize("scale_dtype", ["U8", "F8_E8M0", "F32"])
def test_fp4_experts_of_deepseek_v4_decode_as_transformers_does(scale_dtype: str, tmp_path: Path) -> None:
    """I8 of two codes a byte beside FP8 blocks, scales called NAME.scale."""
    exponents = random_bytes(ROWS, COLUMNS // 32, low=100, high=150)
    scales = {
        "U8": exponents,
        "F8_E8M0": exponents.view(torch.float8_e8m0fnu),
        "F32": 2.0 ** (exponents.float() - 127),
    }[scale_dtype]
    codes = random_bytes(ROWS, COLUMNS // 2).view(torch.int8)
    dense = torch.randn(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    grid = torch.rand(3, 4)
    write_shard(
        tmp_path,
        {"e.w1.weight": codes, "e.w1.scale": scales, "q.weight": dense, "q.scale": grid},
        {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 64]},
        expert_dtype="fp4",
    )
    found = Checkpoint(tmp_path)
    assert {name: found.specs[name].shape for name in found.specs} == {
        "e.w1.weight": (ROWS, COLUMNS),
        "q.weight": (ROWS, COLUMNS),
    }
    theirs = Fp8Dequantize(None).convert({"weight$": [codes], "weight_scale_inv": [scales]})["weight"]
    assert torch.equal(found.load("e.w1.weight").to(theirs.dtype), theirs)
    for name in found.tensors:
        assert SourceDecoder(found).differs(name, found.load(name)) is None
    write_shard(tmp_path, {"e.w1.weight": codes, "e.w1.scale": scales}, {"quant_method": "fp8"})
    assert not Checkpoint(tmp_path).is_encoded("e.w1.weight")  # what I8 means there, nothing says


def test_mxfp4_decodes_as_transformers_does(tmp_path: Path) -> None:
    blocks, scales = random_bytes(ROWS, COLUMNS // 32, 16), random_bytes(ROWS, COLUMNS // 32, high=250)
    tensors = {"a.weight_blocks": blocks, "a.weight_scales": scales}
    write_shard(tmp_path, tensors, {"quant_method": "mxfp4"})
    found = Checkpoint(tmp_path)
    loaded = found.load("a.weight")
    theirs = convert_moe_packed_tensors(blocks[None], scales[None])[0].T
    assert torch.equal(loaded.to(theirs.dtype), theirs)
    assert SourceDecoder(found).differs("a.weight", loaded) is None
    assert "decodes other weights" in str(SourceDecoder(found).differs("a.weight", -loaded))


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """The exponent 255 is NaN in the format; the libraries take it for 2 ** 128."""
    blocks, scales = random_bytes(ROWS, COLUMNS // 32, 16), random_bytes(ROWS, COLUMNS // 32, high=250)
    scales[5, 3] = 255
    tensors = {"a.weight_blocks": blocks, "a.weight_scales": scales}
    write_shard(tmp_path, tensors, {"quant_method": "mxfp4"})
    with pytest.raises(TensorError, match="holds NaN or Inf"):
        Checkpoint(tmp_path).load("a.weight")


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F8_E8M0", "U8"])
@pytest.mark.parametrize("form", ["block", "tensor", "channel"])
def test_fp8_decodes_as_transformers_does(form: str, dtype: str, tmp_path: Path) -> None:
    weight = torch.randn(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    shape = {"block": (3, 4), "tensor": (), "channel": (ROWS, 1)}[form]
    exponents = torch.randint(110, 140, shape).to(torch.uint8)
    powers = 2.0 ** (exponents.float() - 127)
    scales = {
        "F32": torch.rand(shape) + 0.01,
        "BF16": (torch.rand(shape) + 0.01).bfloat16(),
        "F16": (torch.rand(shape) + 0.01).half(),
        "F8_E8M0": powers.to(torch.float8_e8m0fnu),
        "U8": exponents,
    }[dtype]
    quantization: dict[str, Any] = {"quant_method": "fp8"}
    quantization |= {"scale_fmt": "ue8m0"} if dtype == "U8" else {}
    quantization |= {"weight_block_size": [32, 64]} if form == "block" else {}
    suffix = "_scale_inv" if form == "block" else "_scale"
    write_shard(tmp_path, {"a.weight": weight, f"a.weight{suffix}": scales}, quantization)
    found = Checkpoint(tmp_path)
    loaded = found.load("a.weight")
    grid = scales.reshape(-1, 1) if scales.dim() < 2 else scales
    theirs = Fp8Dequantize(None).convert({"weight$": [weight], "weight_scale_inv": [grid]})["weight"]
    assert torch.equal(loaded.to(theirs.dtype), theirs)
    if dtype in ("U8", "F8_E8M0"):
        spread = powers.reshape(grid.shape).repeat_interleave(ROWS // grid.shape[0], 0)
        assert torch.equal(loaded, weight.float() * spread.repeat_interleave(COLUMNS // grid.shape[1], 1))
    assert SourceDecoder(found).differs("a.weight", loaded) is None


def test_ragged_blocks_are_verified_too(tmp_path: Path) -> None:
    """transformers takes blocks of 96 from two scales of 192 rows, where they are of 128 and 64."""
    weight = torch.randn(192, 160).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 2)
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    write_shard(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scales}, quantization)
    found = Checkpoint(tmp_path)
    loaded = found.load("a.weight")
    assert loaded[130, 3] == weight[130, 3].float() * scales[1, 0]
    assert SourceDecoder(found).differs("a.weight", loaded) is None


def test_scales_of_activations_are_dropped_and_named(tmp_path: Path) -> None:
    made = make(*CASES["fp8 tensor"])
    extra = {"a.input_scale": torch.ones(1), "b.k_scale": torch.ones(1), "b.odd": torch.ones(1)}
    write_shard(tmp_path, {**made.tensors, **extra}, made.quantization)
    found = Checkpoint(tmp_path)
    assert sorted(found.tensors) == ["a.weight", "b.odd"]
    assert sorted(found.dropped) == ["a.input_scale", "b.k_scale"]


def test_groups_are_told_apart_by_their_targets(tmp_path: Path) -> None:
    made = make(*CASES["int4 of 32"])
    other = make(*CASES["int8 packed"])
    tensors = {**made.tensors, **{name.replace("a.", "b."): t for name, t in other.tensors.items()}}
    groups = {
        "all": made.quantization["config_groups"]["g"],
        "b": {**other.quantization["config_groups"]["g"], "targets": ["re:b$"]},
    }
    write_shard(tmp_path, tensors, {**made.quantization, "config_groups": groups})
    found = Checkpoint(tmp_path)
    for name, expected in (("a.weight", made.decoded), ("b.weight", other.decoded)):
        loaded = found.load(name)
        assert torch.equal(loaded.bfloat16(), expected)
        assert SourceDecoder(found).differs(name, loaded) is None


def _without(leaf: str) -> Any:
    return lambda made: made.tensors.pop(f"a.{leaf}")


def _with(leaf: str, tensor: Tensor) -> Any:
    return lambda made: made.tensors.update({f"a.{leaf}": tensor})


def _says(**changes: Any) -> Any:
    return lambda made: made.quantization["config_groups"]["g"].update(
        weights={**made.quantization["config_groups"]["g"]["weights"], **changes}
    )


REFUSED: dict[str, tuple[str, Any, type[Moe4Error], str]] = {
    "no scales": ("int4 of 32", _without("weight_scale"), TensorError, "has no a.weight_scale_inv or _scale"),
    "no shape": ("int4 of 32", _without("weight_shape"), TensorError, "has no a.weight_shape"),
    "other group": ("int4 of 32", _says(group_size=64), TensorError, r"must have shape \[96, 4\]"),
    "other bits": ("int4 of 32", _says(num_bits=8), TensorError, r"must have shape \[96, 4\]"),
    "float": ("int4 of 32", _says(type="float"), UnsupportedModelError, "is I32 of float 4 bits"),
    "five bits": ("int4 of 32", _says(num_bits=5), UnsupportedModelError, "int 4 or 8 bits"),
    "no zero point": ("int4 of 32", _says(symmetric=False), TensorError, "zero_point is missing"),
    "no zero point of INT8": (
        "int8 asymmetric",
        _without("weight_zero_point"),
        TensorError,
        "zero_point is missing, but .* symmetric false",
    ),
    "order that is not said": (
        "int4 of 32",
        _with("weight_g_idx", torch.zeros(COLUMNS, dtype=torch.int32)),
        TensorError,
        "g_idx is there, but in quantization_config g says actorder None",
    ),
    "order that is not there": (
        "int4 in an order",
        _without("weight_g_idx"),
        TensorError,
        "g_idx is missing, but .* actorder group",
    ),
    "order of other columns": (
        "int4 in an order",
        _with("weight_g_idx", torch.zeros(8, dtype=torch.int32)),
        TensorError,
        r"must be I32 or I64 \[256\]",
    ),
    "two scales": ("fp8 channel", _with("weight_scale_inv", torch.ones(96, 1)), TensorError, "has both"),
    "int said": ("fp8 channel", _says(type="int"), TensorError, "is F8_E4M3, but g of"),
    "strategy": ("fp8 channel", _says(strategy="token"), UnsupportedModelError, "strategy 'token'"),
    "U8 scales": (
        "fp8 channel",
        _with("weight_scale", torch.ones(96, 1, dtype=torch.uint8)),
        TensorError,
        "has the dtype U8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    name, change, error, message = REFUSED[case]
    made = make(*CASES[name])
    change(made)
    write_shard(tmp_path, made.tensors, made.quantization)
    with pytest.raises(error, match=message):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("change", ["one moved", "past the last", "negative"])
def test_groups_of_columns_that_are_not_whole_are_refused(change: str, tmp_path: Path) -> None:
    made = make(*CASES["int4 in an order"])
    order = made.tensors["a.weight_g_idx"]
    order[7] = {"one moved": (order[7] + 1) % 8, "past the last": 8, "negative": -1}[change]
    write_shard(tmp_path, made.tensors, made.quantization)
    with pytest.raises(TensorError, match=r"a\.weight_g_idx must put 32 columns into each of 8 groups"):
        Checkpoint(tmp_path).load("a.weight")


def test_an_order_that_was_never_filled_in_is_none(tmp_path: Path) -> None:
    made = make(*CASES["int4 in an order"])
    made.tensors["a.weight_g_idx"].fill_(-1)
    write_shard(tmp_path, made.tensors, made.quantization)
    found = Checkpoint(tmp_path)
    assert SourceDecoder(found).differs("a.weight", found.load("a.weight")) is None


def _float_checkpoint(folder: Path, case: tuple[str, dict[str, Any]], change: Any) -> None:
    form, weights = case
    made = Made(
        tensors={f"a.{leaf}": tensor for leaf, tensor in random_parts(form).items()},
        quantization={
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"g": {"targets": ["Linear"], "weights": dict(weights)}},
        },
        decoded=torch.empty(0),
    )
    change(made)
    write_shard(folder, made.tensors, made.quantization)


REFUSED_FLOATS: dict[str, tuple[tuple[str, dict[str, Any]], Any, str]] = {
    "no divisor": (NVFP4, _without("weight_global_scale"), "global_scale is missing, but .* g says nvfp4"),
    "a divisor of two": (
        NVFP4,
        _with("weight_global_scale", torch.ones(2)),
        r"must be F32 \[1\], found F32 \[2\]",
    ),
    "a divisor for powers": (MXFP4, _with("weight_global_scale", torch.ones(1)), "global_scale is there"),
    "other groups": (NVFP4, _says(group_size=32), "tensor_group of 32; moe4 reads U8"),
    "other strategy": (MXFP4, _says(strategy="channel"), "by channel of 32; moe4 reads U8"),
    "said to be int": (MXFP4, _says(type="int"), "type int of 4 bits"),
    "other format": (
        NVFP4,
        lambda made: made.quantization.update(format="pack-quantized"),
        "format pack-quantized, type float",
    ),
    "BF16 scales": (
        NVFP4,
        _with("weight_scale", torch.ones(ROWS, COLUMNS // 16).bfloat16()),
        "has the dtype BF16; expected F8_E4M3",
    ),
    "FP8 scales": (
        MXFP4,
        _with("weight_scale", torch.ones(ROWS, COLUMNS // 32).to(torch.float8_e4m3fn)),
        "has the dtype F8_E4M3; expected U8",
    ),
    "scales of other groups": (
        MXFP4,
        _with("weight_scale", random_bytes(ROWS, COLUMNS // 16)),
        r"must have shape \[96, 8\]",
    ),
    "FP8 with float scales": (
        MXFP8,
        _with("weight_scale", torch.ones(ROWS, COLUMNS // 32)),
        "has the dtype F32; expected U8",
    ),
}


@pytest.mark.parametrize("case", REFUSED_FLOATS)
def test_floats_of_few_bits_that_contradict_themselves_are_refused(case: str, tmp_path: Path) -> None:
    form, change, message = REFUSED_FLOATS[case]
    _float_checkpoint(tmp_path, form, change)
    with pytest.raises(Moe4Error, match=message):
        Checkpoint(tmp_path)


def test_a_stored_shape_that_is_another_is_refused(tmp_path: Path) -> None:
    made = make(*CASES["int4 of 32"])
    made.tensors["a.weight_shape"] = torch.tensor([ROWS, COLUMNS - 8])
    write_shard(tmp_path, made.tensors, made.quantization)
    with pytest.raises(TensorError, match=r"a\.weight_shape must be \[96, 256\], .* found \[96, 248\]"):
        Checkpoint(tmp_path).load("a.weight")
