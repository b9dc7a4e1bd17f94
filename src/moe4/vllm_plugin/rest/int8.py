"""`rest: int8`: what is not routed experts, held as 8-bit integers with a scale for each output.

Activations stay as they are (W8A16). moe4's kernel multiplies where the processor has AVX512-BF16. Elsewhere
few tokens go through torch's kernel, which reads the integers, and for more of them some rows at a time are
decoded to bfloat16.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

import moe4.kernels
from moe4.errors import ServeError
from moe4.kernels import has_int8_linear
from moe4.units import format_bytes

logger = init_logger("vllm.plugins.moe4")

FEW_TOKENS = 8
TORCH_COLUMNS = 16  # torch's kernel reads past the end of rows that are no multiple of this
DECODED_ELEMENTS = 1 << 19  # 1 MiB in bfloat16: they stay in a core's cache until they are multiplied
# MLA takes kv_b_proj apart; routers are small, and one that is off by little chooses other experts.
KEPT = ("kv_b_proj", "gate", "shared_expert_gate", "router")


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
    """Run a linear layer, or the head, whose weight `convert_rest` has converted."""

    def create_weights(self, layer: Any, *_: Any, **__: Any) -> None:
        """Do nothing: the layer has its weight already."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Do nothing: vLLM packs BF16 weights here."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the layer's output for x [..., columns]."""
        y: Tensor = torch.ops.moe4.int8_linear(x, layer.weight, layer.weight_scale)
        return y if bias is None else y + bias


def convert_rest(model: nn.Module) -> None:
    """Convert the weights of linear layers and of the head in place, one after the other.

    Raises ServeError if the model does not run in bfloat16.
    """
    before = after = count = 0
    method = Int8LinearMethod()
    embeddings = {
        id(module.weight) for name, module in model.named_modules() if name.endswith("embed_tokens")
    }
    for name, module in model.named_modules():
        if not _is_plain_linear(module) or name.rpartition(".")[2] in KEPT or id(module.weight) in embeddings:
            continue
        weight = module.weight
        if weight.dtype != torch.bfloat16:
            raise ServeError(f"rest: int8 needs --dtype bfloat16, and {name} is {weight.dtype}")
        codes, scales = quantize_rows(weight.data)
        before += weight.nbytes
        after += codes.nbytes + scales.nbytes
        count += 1
        module.weight = Parameter(codes, requires_grad=False)
        module.weight_scale = Parameter(scales, requires_grad=False)
        module.quant_method = method
    logger.info(
        "moe4: converted %d matrices beside the routed experts to int8, %s to %s",
        count,
        format_bytes(before),
        format_bytes(after),
    )


def _is_plain_linear(module: nn.Module) -> bool:
    kinds = {LinearBase: UnquantizedLinearMethod, ParallelLMHead: UnquantizedEmbeddingMethod}
    return any(
        isinstance(module, layer) and type(getattr(module, "quant_method", None)) is method
        for layer, method in kinds.items()
    )
