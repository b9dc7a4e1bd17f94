"""A source's quantized weights as the libraries of their formats decode them.

Nothing here is shared with `checkpoint/encodings.py` but which tensors a weight is stored in.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.encodings import Encoding, Role
from moe4.checkpoint.index import CONFIG_NAME
from moe4.checkpoint.source import Checkpoint
from moe4.errors import CheckpointError
from moe4.quantize.transfer.device_memory import to_device
from moe4.schema import parse

# What compressed-tensors calls the parts of a weight.
LEAVES: dict[Role, str] = {
    "numbers": "weight_packed",
    "scales": "weight_scale",
    "divisor": "weight_global_scale",
    "zero_points": "weight_zero_point",
    "column_groups": "weight_g_idx",
    "stored_shape": "weight_shape",
}


class SourceDecoder:
    """Decodes one checkpoint's weights. Any thread may call it.

    Raises CheckpointError where the library of the checkpoint's format refuses its config.
    """

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self._groups: Mapping[str, Any] = {}  # the library's own objects
        self.library = "transformers"
        quantization = source.config.quantization
        if quantization is not None and quantization.quant_method == "compressed-tensors":
            from compressed_tensors.quantization import QuantizationConfig

            self.library = "compressed-tensors"
            document = source.config.document.get("quantization_config") or source.config.text_document.get(
                "quantization_config"
            )
            where = f"{source.folder / CONFIG_NAME}: compressed-tensors does not accept quantization_config"
            self._groups = parse(QuantizationConfig, document, where, CheckpointError).config_groups

    def differs(self, name: str, ours: Tensor) -> str | None:
        """Return what is wrong with our decoding, float32 [out, in], of a weight; None if nothing is."""
        encoding = self._source.encoding(name)
        if encoding is None:
            return None
        stored = self._source.read_parts(name)
        parts = {
            role: to_device(stored[part.spec.name], ours.device) for role, part in encoding.roles.items()
        }
        try:
            theirs = self._decode(encoding, parts)
        except Exception as error:  # a library may raise anything
            reason = str(error).replace("\n", " ")
            return f"{name} of the source: {self.library} cannot decode it: {reason:.200}"
        if torch.equal(ours.to(theirs.dtype), theirs):
            return None
        return f"{name} of the source: {self.library} decodes other weights than moe4"

    def _decode(self, encoding: Encoding, parts: Mapping[Role, Tensor]) -> Tensor:
        if encoding.layout == "fp8":
            return _fine_grained_fp8(parts["numbers"], parts["scales"], encoding)
        if encoding.layout == "mxfp4":
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            experts: Tensor = convert_moe_packed_tensors(parts["numbers"][None], parts["scales"][None])
            return experts[0].T
        from compressed_tensors.compressors.base import BaseCompressor
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        state = {LEAVES[role]: tensor for role, tensor in parts.items()}
        shape = encoding.shape
        if encoding.block[0] == 1:  # a list of scales would be taken for one
            state["weight_scale"] = state["weight_scale"].reshape(shape[0], -1)
        if encoding.form == "numbers":  # the library takes a block's size from the scales' shape
            state["weight"] = _whole_blocks(state.pop("weight_packed"), encoding)
        if "weight_shape" in state:
            state["weight_shape"] = state["weight_shape"].cpu()
        scheme = self._groups[str(encoding.group)]
        if encoding.num_blocks[0] > 1 and encoding.num_blocks[1] == 1 and encoding.block[0] > 1:
            # Without the scheme the library would take one block across for a scale a row.
            weight: Tensor = dequantize(state["weight"], state["weight_scale"], args=scheme.weights)
        else:
            form = BaseCompressor.get_value_from_registry(encoding.layout)
            weight = form.decompress(state, scheme)["weight"]
        return weight[: shape[0], : shape[1]]


def _fine_grained_fp8(numbers: Tensor, scales: Tensor, encoding: Encoding) -> Tensor:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    whole = numbers if encoding.form == "e2m1" else _whole_blocks(numbers, encoding)
    grid = scales.reshape(-1, 1) if scales.dim() < 2 else scales
    found: Any = Fp8Dequantize(None).convert({"weight$": [whole], "weight_scale_inv": [grid]})
    weight: Tensor = found["weight"]
    return weight[: encoding.shape[0], : encoding.shape[1]]


def _whole_blocks(numbers: Tensor, encoding: Encoding) -> Tensor:
    """Return the numbers with zeros beyond the last row and column, up to whole blocks."""
    down, across = encoding.num_blocks
    shape = down * encoding.block[0], across * encoding.block[1]
    if shape == encoding.shape:
        return numbers
    whole = torch.zeros(shape, dtype=torch.float32, device=numbers.device).to(numbers.dtype)
    whole[: encoding.shape[0], : encoding.shape[1]] = numbers
    return whole
