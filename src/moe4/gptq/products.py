"""Matrix products in bf16 with float32 sums, where the CPU has them: at more than twice the rate of float32.

What may be rounded to bf16 is argued where it is done, and measured in docs/log.md.
"""

import torch
from torch import Tensor

from moe4.environment import Variable, chosen
from moe4.gptq import _columns

HAS_BF16: bool = _columns.has_bf16()
"""Whether this machine multiplies in bf16 (AVX512-BF16)."""
_CHOICES = ("bf16", "float32")


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype for operands of products that bear rounding to bf16.

    MOE4_PRODUCTS chooses bf16 or float32; without it, bf16 where the CPU multiplies in it. Only float32
    tensors on the CPU are rounded.
    """
    name = chosen(Variable.PRODUCTS, _CHOICES, "bf16" if HAS_BF16 else "float32")
    wanted = name == "bf16" and tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return torch.bfloat16 if wanted else tensor.dtype


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add x^T x to the lower triangle of `total`, float32 [in, in]; x bf16 [tokens, in].

    The products are exact and their sums float32, in an order that does not depend on the number of threads.
    The upper triangle is written too, in part, and means nothing. Needs `HAS_BF16`.
    """
    assert HAS_BF16
    assert (total.dtype, x.dtype) == (torch.float32, torch.bfloat16)
    assert total.is_contiguous()
    num_tokens, size = x.shape
    assert total.shape == (size, size)
    num_pairs, num_panels = -(-num_tokens // 2), -(-size // _columns.PANEL_COLUMNS)
    padded = x.new_zeros(2 * num_pairs, num_panels * _columns.PANEL_COLUMNS)
    padded[:num_tokens, :size] = x
    # [panels, pairs of tokens, columns, the two]: what one step of the product takes lies side by side.
    panels = padded.view(num_pairs, 2, num_panels, _columns.PANEL_COLUMNS).permute(2, 0, 3, 1).contiguous()
    _columns.add_gram(
        num_threads=torch.get_num_threads(),
        num_pairs=num_pairs,
        size=size,
        panels=panels.data_ptr(),
        total=total.data_ptr(),
    )
