"""`rest: int4`: a linear layer as 4-bit codes in groups, run by the experts' kernels (W4A16).

Where the release has the codes (`--targets all`), these are used. Elsewhere weights are rounded to nearest in
groups of 128 if that divides their width, each with the scale that errs least.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16

import moe4.kernels
from moe4.checkpoint.packed import pack
from moe4.gptq.grid import round_to_grid, search_scales
from moe4.kernels import has_int4_linear
from moe4.kernels.op import GROUP_SIZES
from moe4.recipe import Gptq

ROWS_AT_ONCE = 1024


def quantize_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return int32 words [rows, columns / 8] and bfloat16 scales [rows, columns / group_size] near `weight`.

    Memory: a few times ROWS_AT_ONCE rows in float32.
    """
    rows, columns = weight.shape
    words = torch.empty(rows, columns // 8, dtype=torch.int32)
    scales = torch.empty(rows, columns // group_size, dtype=torch.bfloat16)
    settings, importance = Gptq(), torch.ones(columns, dtype=torch.float32)
    for first in range(0, rows, ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        block = weight[part].float()
        found = search_scales(
            block,
            importance,
            group_size,
            signed=settings.signed_scales,
            candidates=settings.scale_candidates,
            shrink=settings.scale_shrink,
        )
        words[part] = pack(round_to_grid(block, found))
        scales[part] = found
    return words, scales


def int4_linear(x: Tensor, words: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Return x @ W.T in x's dtype. x: [..., columns]."""
    y = moe4.kernels.int4_linear(x.reshape(-1, x.shape[-1]), words, scales, group_size=group_size)
    return y.reshape(*x.shape[:-1], words.shape[0])


_library = torch.library.Library("moe4", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "int4_linear(Tensor x, Tensor words, Tensor scales, int group_size) -> Tensor"
)
_library.impl("int4_linear", int4_linear, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "moe4::int4_linear", lambda x, words, *_: x.new_empty(*x.shape[:-1], words.shape[0]), lib=_library
)


class Int4LinearMethod(LinearMethodBase):  # type: ignore[misc]  # vllm is untyped here
    """Run a linear layer, or the head, that has `weight_packed` and `weight_scale`."""

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def create_weights(self, layer: Any, *_: Any, **__: Any) -> None:
        """Do nothing: the layer has its weight already."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Do nothing: vLLM repacks codes here."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the layer's output for x [..., columns]."""
        y: Tensor = torch.ops.moe4.int4_linear(x, layer.weight_packed, layer.weight_scale, self.group_size)
        return y if bias is None else y + bias


def round_layer(module: Any) -> str | None:
    """Round a layer's weight in place and return to what; None where the kernel does not take its shape.

    The largest groups that fit: on k2-tiny groups of 32 lose no less, and one token takes 1.4 times as long.
    """
    weight: Tensor = module.weight.data
    rows, columns = weight.shape
    fitting = [size for size in GROUP_SIZES if has_int4_linear(rows, columns, size)]
    if not fitting:
        return None
    group_size = max(fitting)
    words, scales = quantize_groups(weight, group_size)
    del module.weight
    module.weight_packed = Parameter(words, requires_grad=False)
    module.weight_scale = Parameter(scales, requires_grad=False)
    module.quant_method = Int4LinearMethod(group_size)
    return f"int4 in groups of {group_size}"


def take_codes(module: Any) -> bool:
    """Have our kernel run a layer whose INT4 codes vLLM has loaded; return whether it is one."""
    if type(module.quant_method) is not CompressedTensorsLinearMethod:
        return False
    scheme = module.scheme
    if not isinstance(scheme, CompressedTensorsWNA16) or scheme.num_bits != 4 or not scheme.symmetric:
        return False
    words, scales = module.weight_packed.data, module.weight_scale.data
    if scales.dtype != torch.bfloat16:
        return False
    if not has_int4_linear(words.shape[0], words.shape[1] * 8, scheme.group_size):
        return False
    module.weight_packed = Parameter(words, requires_grad=False)
    module.weight_scale = Parameter(scales, requires_grad=False)
    module.quant_method = Int4LinearMethod(scheme.group_size)
    return True
