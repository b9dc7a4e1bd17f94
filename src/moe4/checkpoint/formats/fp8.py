"""`quant_method` fp8, as DeepSeek publishes it and transformers decodes it.

    weight F8 [out, in]      weight_scale_inv (or weight_scale): one scale, one for each row, or one for each
                             block of weight_block_size
    weight I8 [out, in / 2]  where config.json says "expert_dtype": "fp4" (DeepSeek-V4), inside
                             quantization_config or not: two E2M1 codes a byte, one scale for 32 columns

DeepSeek-V4 calls the scales of NAME.weight NAME.scale.
"""

from collections.abc import Iterator, Mapping
from math import prod

from moe4.checkpoint.encodings import FP8_DTYPES, Block, Encoding
from moe4.checkpoint.formats.parts import (
    EXPONENT_FORMAT,
    check_scale_dtype,
    checked,
    find_scales,
    require_matrix,
)
from moe4.checkpoint.header import StoredTensor
from moe4.config import ModelConfig
from moe4.config.parts import Quantization

DEFAULT_BLOCK = (128, 128)
FP4_BLOCK = (1, 32)


def find_fp8(
    stored: Mapping[str, StoredTensor], quantization: Quantization, config: ModelConfig
) -> Iterator[Encoding]:
    """Yield the weights in the order of their tensors. Experts that lie fused are not among them yet."""
    has_fp4 = "fp4" in (quantization.expert_dtype, config.text_document.get("expert_dtype"))
    for name, tensor in stored.items():
        is_fp4 = has_fp4 and tensor.spec.dtype == "I8" and name.endswith(".weight")
        if len(tensor.spec.shape) == 3 or not (is_fp4 or tensor.spec.dtype in FP8_DTYPES):
            continue
        shape = require_matrix(tensor)
        other_name = name.removesuffix("weight") + "scale"
        scales = find_scales(stored, name, *([other_name] if name.endswith(".weight") else ()))
        check_scale_dtype(scales, exponents=quantization.scale_fmt == EXPONENT_FORMAT)
        block = _block(quantization, shape, scales.spec.shape)
        if is_fp4:
            shape, block = (shape[0], 2 * shape[1]), FP4_BLOCK
        yield checked(
            Encoding(
                name=name,
                shape=shape,
                block=block,
                numbers=tensor,
                scales=scales,
                form="e2m1" if is_fp4 else "numbers",
                layout="fp8",
            )
        )


def _block(quantization: Quantization, shape: tuple[int, int], scales: tuple[int, ...]) -> Block:
    """Return what shares a scale; without weight_block_size the scales' shape says it."""
    if quantization.weight_block_size:
        rows, columns = quantization.weight_block_size
        return rows, columns
    if prod(scales) == 1:
        return shape
    return (1, shape[1]) if scales in ((shape[0],), (shape[0], 1)) else DEFAULT_BLOCK
