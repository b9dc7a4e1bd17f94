"""`quant_method` mxfp4, as gpt-oss is published and transformers decodes it.

    weight_blocks U8 [out, in / 32, 16]  two E2M1 codes a byte, low bits first
    weight_scales U8 [out, in / 32]      exponents plus 127

A layer's experts lie in one tensor each for gate and up and for down; `moe4.model.fused` takes them apart.
"""

from collections.abc import Iterator, Mapping

from moe4.checkpoint.encodings import Encoding
from moe4.checkpoint.formats.parts import checked, require_dtype
from moe4.checkpoint.header import StoredTensor
from moe4.errors import TensorError

BLOCKS_SUFFIX, SCALES_SUFFIX = "_blocks", "_scales"
BLOCK_BYTES = 16


def find_mxfp4(stored: Mapping[str, StoredTensor]) -> Iterator[Encoding]:
    """Yield the weights in the order of their tensors. Experts that lie fused are not among them yet."""
    for stored_name, tensor in stored.items():
        name = stored_name.removesuffix(BLOCKS_SUFFIX)
        if name == stored_name or not name.endswith(".weight"):
            continue
        scales = stored.get(name + SCALES_SUFFIX)
        if scales is None:
            raise TensorError(f"{stored_name} has no {name}{SCALES_SUFFIX} beside it; download it again")
        require_dtype(tensor, "U8")
        require_dtype(scales, "U8")
        if len(tensor.spec.shape) != 3 or tensor.spec.shape[2] != BLOCK_BYTES:
            raise TensorError(
                f"{stored_name} must have the shape [out, in / 32, {BLOCK_BYTES}], "
                f"found {list(tensor.spec.shape)}"
            )
        rows, num_blocks, _ = tensor.spec.shape
        yield checked(
            Encoding(
                name=name,
                shape=(rows, num_blocks * 2 * BLOCK_BYTES),
                block=(1, 2 * BLOCK_BYTES),
                numbers=tensor,
                scales=scales,
                form="e2m1",
                layout="mxfp4",
            )
        )
