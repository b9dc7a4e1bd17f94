"""The formats of a source's weights: plain floats, and FP8 with a scale for each block."""

from torch import Tensor

from moe4.config import ModelConfig
from moe4.errors import UnsupportedModelError

SCALE_SUFFIX = "_scale_inv"
FLOAT_DTYPES = ("BF16", "F16", "F32")
PLAIN_DTYPES = (*FLOAT_DTYPES, "F64")
"""What a weight that stays as it is may have; those that are quantized have one of FLOAT_DTYPES or FP8."""
FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
SCALE_DTYPES = (*FLOAT_DTYPES, "F8_E8M0")
EXPONENT_FORMAT = "ue8m0"
MAX_BLOCK = 1 << 20


def dequantize_blocks(weight: Tensor, scales: Tensor, block_size: tuple[int, int]) -> Tensor:
    """Return float32 weights of FP8 [out, in] and its blocks' scales [ceil(out / b0), ceil(in / b1)]."""
    (rows, columns), (height, width) = weight.shape, block_size
    if rows % height == 0 and columns % width == 0:
        blocks = weight.float().view(rows // height, height, columns // width, width)
        return blocks.mul_(scales.float()[:, None, :, None]).view(rows, columns)
    expanded = scales.float().repeat_interleave(height, dim=0)[:rows]
    return weight.float().mul_(expanded.repeat_interleave(width, dim=1)[:, :columns])


def fp8_block_size(config: ModelConfig) -> tuple[int, int]:
    """Return the block size of an FP8 checkpoint; refuse one that is quantized in any other way."""
    if config.quantization is None:
        return (128, 128)
    if config.quantization.quant_method != "fp8":
        raise UnsupportedModelError(
            f"the checkpoint is quantized already ({config.quantization.quant_method}); "
            "moe4 reads BF16 and block-FP8"
        )
    rows, columns = config.quantization.weight_block_size or (128, 128)
    return (rows, columns)
