"""What a weight's scales and zero points must be, whatever the format."""

from collections.abc import Mapping

from moe4.checkpoint.encodings import Encoding
from moe4.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moe4.errors import TensorError

SCALE_DTYPES = (*FLOAT_DTYPES, "F8_E8M0")
EXPONENT_FORMAT = "ue8m0"
SCALE_SUFFIXES = ("_scale_inv", "_scale")
PACKED_SUFFIX = "_packed"


def find_scales(stored: Mapping[str, StoredTensor], name: str, *other_names: str) -> StoredTensor:
    """Return the scales of a weight, under the one of their names that is there. Raises TensorError."""
    names = (*(name + suffix for suffix in SCALE_SUFFIXES), *other_names)
    found = [stored[other] for other in names if other in stored]
    if len(found) == 1:
        return found[0]
    tensor = stored.get(name) or stored[name + PACKED_SUFFIX]
    if found:
        raise TensorError(f"{name} has both a {found[0].spec.name} and a {found[1].spec.name}; remove one")
    raise TensorError(
        f"{tensor.spec.name} is {tensor.spec.dtype} but has no {name}{SCALE_SUFFIXES[0]} or "
        f"{SCALE_SUFFIXES[1]} with its scales"
    )


def check_scale_dtype(scales: StoredTensor, *, exponents: bool = False) -> None:
    """Raise TensorError for scales that are no numbers. exponents: whether U8 is said to hold exponents."""
    dtype = scales.spec.dtype
    if dtype not in SCALE_DTYPES and not (dtype == "U8" and exponents):
        raise TensorError(
            f"{scales.spec.name} has the dtype {dtype}; expected one of {', '.join(SCALE_DTYPES)}, or U8 "
            f'where quantization_config says "scale_fmt": "{EXPONENT_FORMAT}" or "mxfp8-quantized"'
        )


def require_dtype(tensor: StoredTensor, *dtypes: str) -> None:
    """Raise TensorError for another dtype than a format's."""
    if tensor.spec.dtype not in dtypes:
        expected = " or ".join(dtypes)
        raise TensorError(f"{tensor.spec.name} has the dtype {tensor.spec.dtype}; expected {expected}")


def require_matrix(tensor: StoredTensor) -> tuple[int, int]:
    """Return a matrix's rows and columns. Raises TensorError."""
    if len(tensor.spec.shape) != 2:
        raise TensorError(
            f"{tensor.spec.name} is {tensor.spec.dtype} of shape {list(tensor.spec.shape)}; expected a matrix"
        )
    rows, columns = tensor.spec.shape
    return rows, columns


def checked(encoding: Encoding) -> Encoding:
    """Return an encoding whose scales and zero points cover its blocks. Raises TensorError."""
    blocks, block = encoding.num_blocks, encoding.block
    shapes: set[tuple[int, ...]] = {blocks}
    if 0 in encoding.shape:
        raise TensorError(f"{encoding.name} has the shape {list(encoding.shape)}; expected weights")
    if blocks[1] == 1 and block[1] >= encoding.shape[1]:
        shapes.add(blocks[:1])
    if blocks == (1, 1):
        shapes |= {(), (1,)}
    if encoding.scales.spec.shape not in shapes:
        raise TensorError(
            f"{encoding.scales.spec.name} must have shape {list(blocks)} for {encoding.name} of shape "
            f"{list(encoding.shape)} in blocks of {list(block)}, found {list(encoding.scales.spec.shape)}"
        )
    points, dtype = encoding.zero_points, "I8"
    if encoding.form == "words":
        dtype, blocks = "I32", (-(-encoding.shape[0] * encoding.num_bits // 32), blocks[1])
        shapes = {blocks}
    if points is not None and (points.spec.dtype != dtype or points.spec.shape not in shapes):
        raise TensorError(
            f"{points.spec.name} must be {dtype} {list(blocks)}, found {points.spec.dtype} "
            f"{list(points.spec.shape)}"
        )
    return encoding
