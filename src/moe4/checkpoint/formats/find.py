"""From a checkpoint's tensors and its config to how each quantized weight is stored.

What a tensor is follows from its dtype, its shape and quantization_config together; where these disagree it
is refused.
"""

from collections.abc import Iterator, Mapping

from moe4.checkpoint.encodings import Encoding
from moe4.checkpoint.formats.compressed import FP4_GROUP_SIZES, NVFP4, CompressedTensors, find_block
from moe4.checkpoint.formats.fp8 import DEFAULT_BLOCK, find_fp8
from moe4.checkpoint.formats.mxfp4 import BLOCK_BYTES, BLOCKS_SUFFIX, SCALES_SUFFIX, find_mxfp4
from moe4.checkpoint.formats.parts import PACKED_SUFFIX, SCALE_SUFFIXES
from moe4.checkpoint.header import StoredTensor, TensorSpec
from moe4.config import ModelConfig
from moe4.config.parts import Quantization, QuantizedGroup, QuantizedWeights
from moe4.errors import TensorError, UnsupportedModelError

# What static quantization of activations and of the cache leaves beside the weights: of no use to weights.
QUANTIZED_INPUTS = ("input", "output", "activation", "q", "k", "v", "kv")
ACTIVATION_LEAVES = {
    *(f"{of}_{leaf}" for of in QUANTIZED_INPUTS for leaf in ("scale", "zero_point")),
    *("input_global_scale", "input_scale_inv", "activation_scale_inv"),
}


def find_encodings(stored: Mapping[str, StoredTensor], config: ModelConfig) -> dict[str, Encoding]:
    """Return how each quantized weight of a checkpoint is stored, by the weight's name.

    Raises UnsupportedModelError for a way of quantizing that is not read, and TensorError for tensors that
    are not what the config says.
    """
    quantization = config.quantization
    if quantization is None or quantization.quant_method == "fp8":
        found: Iterator[Encoding] = find_fp8(stored, quantization or Quantization(), config)
    elif quantization.quant_method == "compressed-tensors":
        found = CompressedTensors(stored, quantization).find()
    elif quantization.quant_method == "mxfp4":
        found = find_mxfp4(stored)
    else:
        raise UnsupportedModelError(
            f"the checkpoint is quantized already ({quantization.quant_method}); moe4 reads BF16, FP8, MXFP4 "
            "and compressed-tensors"
        )
    encodings = {encoding.name: encoding for encoding in found}
    for name, encoding in encodings.items():
        if name in stored and encoding.numbers.spec.name != name:
            raise TensorError(
                f"{name} is there twice: plain, and as {encoding.numbers.spec.name}; one must go"
            )
    return encodings


def sketch_encoded(name: str, shape: tuple[int, ...], quantization: Quantization) -> list[TensorSpec]:
    """Return what a weight [out, in] is stored in where only the config is there to say it."""
    rows, columns = shape
    if quantization.quant_method == "mxfp4":
        blocks = (rows, columns // (2 * BLOCK_BYTES))
        return [
            TensorSpec(name=name + BLOCKS_SUFFIX, dtype="U8", shape=(*blocks, BLOCK_BYTES)),
            TensorSpec(name=name + SCALES_SUFFIX, dtype="U8", shape=blocks),
        ]
    if quantization.quant_method != "compressed-tensors":
        height, width = quantization.weight_block_size or DEFAULT_BLOCK
        scales = -(-rows // height), -(-columns // width)
        return [
            TensorSpec(name=name + SCALE_SUFFIXES[0], dtype="F32", shape=scales),
            TensorSpec(name=name, dtype="F8_E4M3", shape=shape),
        ]
    groups = (group for group in (quantization.config_groups or {}).values() if group.weights)
    group = next(groups, None)
    if group is None or group.weights is None:
        return [TensorSpec(name=name, dtype="BF16", shape=shape)]
    return _sketch_compressed(name, (rows, columns), quantization, group, group.weights)


def _sketch_compressed(
    name: str,
    shape: tuple[int, int],
    quantization: Quantization,
    group: QuantizedGroup,
    weights: QuantizedWeights,
) -> list[TensorSpec]:
    rows, columns = shape
    form = group.format or quantization.format
    if form in FP4_GROUP_SIZES:
        blocks = (rows, columns // FP4_GROUP_SIZES[form])
        dtype = "F8_E4M3" if form == NVFP4 else "U8"
        found = [TensorSpec(name=f"{name}_global_scale", dtype="F32", shape=(1,))] if form == NVFP4 else []
        return [
            TensorSpec(name=name + PACKED_SUFFIX, dtype="U8", shape=(rows, columns // 2)),
            TensorSpec(name=name + SCALE_SUFFIXES[1], dtype=dtype, shape=blocks),
            *found,
        ]
    height, width = find_block(name, shape, weights)
    scales = -(-rows // height), -(-columns // width)
    found = [TensorSpec(name=name + SCALE_SUFFIXES[1], dtype="BF16", shape=scales)]
    if not quantization.is_packed or not weights.num_bits:
        dtype = "I8" if weights.type == "int" else "F8_E4M3"
        return [TensorSpec(name=name, dtype=dtype, shape=shape), *found]
    words = (rows, columns * weights.num_bits // 32)
    found.append(TensorSpec(name=f"{name}_shape", dtype="I32", shape=(2,)))
    return [TensorSpec(name=name + PACKED_SUFFIX, dtype="I32", shape=words), *found]
