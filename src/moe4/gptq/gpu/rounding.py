"""How a weight becomes a code and a scale a bf16 number, for kernels: the rules of `gptq/grid.py`."""

import triton
import triton.language as tl

from moe4.checkpoint.packed import CODE_MAX, CODE_MIN

SMALLEST_SCALE = tl.constexpr(2.0**-120)  # as in `gptq/grid.py`
LOWEST, HIGHEST = tl.constexpr(float(CODE_MIN)), tl.constexpr(float(CODE_MAX))
LARGEST_HALF = tl.constexpr(65504.0)


@triton.jit
def to_code(x):
    """Nearest of -8 .. 7, halves to even: between these the sum with 1.5 * 2^23 keeps no fraction."""
    x = tl.minimum(tl.maximum(x, LOWEST), HIGHEST)
    return (x + 12582912.0) - 12582912.0


@triton.jit
def to_bf16_grid(scale):
    """To bf16, halves to even, and away from zero."""
    bits = scale.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    rounded = bits.to(tl.float32, bitcast=True)
    return tl.where(tl.abs(rounded) < SMALLEST_SCALE, SMALLEST_SCALE, rounded)


@triton.jit
def to_operand(x, like):
    """To the dtype that `like` points to; a float16 stays finite."""
    return tl.minimum(tl.maximum(x, -LARGEST_HALF), LARGEST_HALF).to(like.dtype.element_ty)
