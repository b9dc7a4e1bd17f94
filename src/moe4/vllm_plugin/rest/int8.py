"""`rest: int8`: a linear layer held as 8-bit integers with a scale for each output.

Activations stay as they are (W8A16). moe4's kernel multiplies where the processor has AVX512-BF16. Elsewhere
few tokens go through torch's kernel, which reads the integers, and for more of them some rows at a time are
decoded to bfloat16.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear
from vllm.model_executor.layers.linear import LinearMethodBase

import moe4.kernels
from moe4.kernels import has_int8_linear

FEW_TOKENS = 8
TORCH_COLUMNS = 16  # torch's kernel reads past the end of rows that are no multiple of this
DECODED_ELEMENTS = 1 << 19  # 1 MiB in bfloat16: they stay in a core's cache until they are multiplied


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 [rows, columns] and bfloat16 scales [rows] whose product is nearest to `weight`.

    A row's largest value becomes 127, or what rounding its scale to bfloat16 leaves of it. Memory: one row
    block in float32.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.bfloat16)
    for first in range(0, weight.shape[0], 1024):
        rows = weight[first : first + 1024].float()
        scale = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
        scales[first : first + 1024] = scale
        codes[first : first + 1024] = (rows / scale.float().unsqueeze(1)).round().clamp(-127, 127)
    return codes, scales


def int8_linear(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Return x @ (codes * scales).T in bfloat16. x: bfloat16 [..., columns]."""
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == torch.bfloat16 and has_int8_linear(*codes.shape):
        y = moe4.kernels.int8_linear(rows, codes, scales)
    elif rows.shape[0] <= FEW_TOKENS and codes.shape[1] % TORCH_COLUMNS == 0:
        y = torch.ops.aten._weight_int8pack_mm(rows.contiguous(), codes, scales)
    else:
        y = torch.empty(rows.shape[0], codes.shape[0], dtype=x.dtype)
        step = max(1, DECODED_ELEMENTS // codes.shape[1])
        for first in range(0, codes.shape[0], step):
            part = slice(first, first + step)
            y[:, part] = linear(rows, codes[part].to(x.dtype)) * scales[part]
    result: Tensor = y.reshape(*x.shape[:-1], codes.shape[0])
    return result


_library = torch.library.Library("moe4", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("int8_linear(Tensor x, Tensor codes, Tensor scales) -> Tensor")  # type: ignore[no-untyped-call]
_library.impl("int8_linear", int8_linear, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "moe4::int8_linear", lambda x, codes, scales: x.new_empty(*x.shape[:-1], codes.shape[0]), lib=_library
)


class Int8LinearMethod(LinearMethodBase):  # type: ignore[misc]  # vllm is untyped here
    """Run a linear layer, or the head, whose weight `round_layer` has rounded."""

    def create_weights(self, layer: Any, *_: Any, **__: Any) -> None:
        """Do nothing: the layer has its weight already."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Do nothing: vLLM packs BF16 weights here."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the layer's output for x [..., columns]."""
        y: Tensor = torch.ops.moe4.int8_linear(x, layer.weight, layer.weight_scale)
        return y if bias is None else y + bias


def round_layer(module: Any) -> str:
    """Round a layer's weight in place and return to what; any shape can be."""
    codes, scales = quantize_rows(module.weight.data)
    module.weight = Parameter(codes, requires_grad=False)
    module.weight_scale = Parameter(scales, requires_grad=False)
    module.quant_method = Int8LinearMethod()
    return "int8"
