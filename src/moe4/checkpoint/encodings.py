"""What the tensors of a quantized source mean: which of them make up a weight, and how they are decoded.

Every format read here is numbers times scales, W = (q - z) * s, where a scale holds for a block of W. What a
tensor is follows from its dtype, its shape and quantization_config together; where these disagree it is
refused. Two kinds of `quant_method` are known:

    fp8                 weight F8 [out, in]; weight_scale_inv (or weight_scale): one scale, one for each
                        row, or one for each block of weight_block_size
    compressed-tensors  weight F8 or I8 [out, in], or weight_packed I32 [out, in * bits / 32] with
                        weight_shape [2]; weight_scale by `strategy`: tensor, channel, group, block;
                        weight_zero_point if it is not symmetric
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from moe4.checkpoint.header import FLOAT_DTYPES, StoredTensor, TensorSpec
from moe4.checkpoint.matching import PATTERN, find_matching
from moe4.config import ModelConfig
from moe4.config.parts import Quantization, QuantizedGroup, QuantizedWeights
from moe4.errors import TensorError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
SCALE_DTYPES = (*FLOAT_DTYPES, "F8_E8M0")
EXPONENT_FORMAT = "ue8m0"
SCALE_SUFFIXES = ("_scale_inv", "_scale")
PACKED_SUFFIX = "_packed"
PACKED_BITS = (4, 8)
DEFAULT_BLOCK = (128, 128)
# What static quantization of activations and of the cache leaves beside the weights: of no use to weights.
QUANTIZED_INPUTS = ("input", "output", "activation", "q", "k", "v", "kv")
ACTIVATION_LEAVES = {
    *(f"{of}_{leaf}" for of in QUANTIZED_INPUTS for leaf in ("scale", "zero_point")),
    *("input_global_scale", "input_scale_inv", "activation_scale_inv"),
}

Block = tuple[int, int]
"""Rows and columns that share a scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """One weight [out, in] as it is stored.

    num_bits: of packed codes; 0 where `numbers` holds one number an element. group: the name of its group in
    compressed-tensors' config.
    """

    name: str
    shape: tuple[int, int]
    block: Block
    numbers: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor | None = None
    stored_shape: StoredTensor | None = None
    num_bits: int = 0
    group: str | None = None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensors it is stored in: numbers, scales, then zero points and shape where there are any."""
        found = (self.numbers, self.scales, self.zero_points, self.stored_shape)
        return tuple(part for part in found if part is not None)

    @property
    def weight(self) -> StoredTensor:
        """The weight as the model knows it; BF16 stands for dtypes that are not FP8."""
        dtype = self.numbers.spec.dtype if self.numbers.spec.dtype in FP8_DTYPES else "BF16"
        return replace(self.numbers, spec=TensorSpec(name=self.name, dtype=dtype, shape=self.shape))

    @property
    def num_blocks(self) -> tuple[int, int]:
        """How many blocks there are, down and across."""
        (rows, columns), (height, width) = self.shape, self.block
        return -(-rows // height), -(-columns // width)

    def is_released_as(self, group_size: int) -> bool:
        """Say whether its codes and scales are those of a release with this group size, as they are."""
        return (
            self.num_bits == 4
            and self.zero_points is None
            and self.block == (1, group_size)
            and self.scales.spec.dtype == "BF16"
        )

    def accept(self, pieces: tuple["Tensor", ...], *, pinned: bool = False) -> tuple["Tensor", ...]:
        """Return what `decode` takes of the stored parts: no shape, and exponents as the numbers they mean.

        Raises TensorError where the stored shape is another.
        """
        if self.stored_shape is not None:
            *pieces_left, shape = pieces
            if tuple(shape.tolist()) != self.shape:
                raise TensorError(
                    f"{self.stored_shape.spec.name} must be {list(self.shape)}, as "
                    f"{self.numbers.spec.name} has it, found {shape.tolist()}; the checkpoint is damaged"
                )
            pieces = tuple(pieces_left)
        if pieces[1].itemsize == 1:
            import torch

            exponents = pieces[1].view(torch.float8_e8m0fnu)
            scales = torch.empty(exponents.shape, dtype=torch.float32, pin_memory=pinned)
            pieces = (pieces[0], scales.copy_(exponents), *pieces[2:])
        return pieces

    def decode(self, pieces: tuple["Tensor", ...]) -> "Tensor":
        """Return the weight, float32 [out, in], of what `accept` gave; every product is rounded once."""
        numbers, scales = pieces[:2]
        if self.num_bits:
            from moe4.checkpoint.packed import unpack

            numbers = unpack(numbers, self.num_bits)
        if len(pieces) > 2:
            zero_points = self._zero_points(pieces[2]).float()
            numbers = numbers.float() - spread_blocks(zero_points, self.block, self.shape)
        return dequantize_blocks(numbers, scales.reshape(self.num_blocks), self.block)

    def _zero_points(self, stored: "Tensor") -> "Tensor":
        if not self.num_bits:
            return stored.reshape(self.num_blocks)
        from moe4.checkpoint.packed import unpack

        return unpack(stored.T, self.num_bits).T[: self.shape[0]]


def dequantize_blocks(numbers: "Tensor", scales: "Tensor", block: Block) -> "Tensor":
    """Return float32 weights of numbers [out, in] and scales [ceil(out / b0), ceil(in / b1)] of blocks."""
    (rows, columns), (height, width) = numbers.shape, block
    if rows % height == 0 and columns % width == 0:
        blocks = numbers.float().view(rows // height, height, columns // width, width)
        return blocks.mul_(scales.float()[:, None, :, None]).view(rows, columns)
    return numbers.float().mul_(spread_blocks(scales.float(), block, (rows, columns)))


def spread_blocks(values: "Tensor", block: Block, shape: tuple[int, int]) -> "Tensor":
    """Return each block's value for all of its elements, [out, in]."""
    rows = values.repeat_interleave(block[0], dim=0)[: shape[0]]
    return rows.repeat_interleave(block[1], dim=1)[:, : shape[1]]


def find_encodings(stored: Mapping[str, StoredTensor], config: ModelConfig) -> dict[str, Encoding]:
    """Return how each quantized weight of a checkpoint is stored, by the weight's name.

    Raises UnsupportedModelError for a way of quantizing that is not read, and TensorError for tensors that
    are not what the config says.
    """
    quantization = config.quantization
    if quantization is None or quantization.quant_method == "fp8":
        found: Iterator[Encoding] = _find_fp8(stored, quantization or Quantization())
    elif quantization.quant_method == "compressed-tensors":
        found = _CompressedTensors(stored, quantization).find()
    else:
        raise UnsupportedModelError(
            f"the checkpoint is quantized already ({quantization.quant_method}); moe4 reads BF16, FP8 and "
            "compressed-tensors"
        )
    return {encoding.name: encoding for encoding in found}


def sketch_encoded(name: str, shape: tuple[int, ...], quantization: Quantization) -> list[TensorSpec]:
    """Return what a weight [out, in] is stored in where only the config is there to say it."""
    rows, columns = shape
    block, num_bits, suffix = quantization.weight_block_size or DEFAULT_BLOCK, 0, SCALE_SUFFIXES[0]
    dtype, scale_dtype = "F8_E4M3", "F32"
    if quantization.quant_method != "fp8":
        groups = (group.weights for group in (quantization.config_groups or {}).values())
        weights = next(filter(None, groups), None)
        if weights is None:
            return [TensorSpec(name=name, dtype="BF16", shape=shape)]
        num_bits = (weights.num_bits or 0) if quantization.is_packed else 0
        dtype = "I8" if weights.type == "int" else "F8_E4M3"
        block, suffix, scale_dtype = _block(name, (rows, columns), weights), SCALE_SUFFIXES[1], "BF16"
    scales = -(-rows // block[0]), -(-columns // block[1])
    found = [TensorSpec(name=name + suffix, dtype=scale_dtype, shape=scales)]
    if not num_bits:
        return [TensorSpec(name=name, dtype=dtype, shape=shape), *found]
    words = (rows, columns * num_bits // 32)
    found.append(TensorSpec(name=f"{name}_shape", dtype="I32", shape=(2,)))
    return [TensorSpec(name=name + PACKED_SUFFIX, dtype="I32", shape=words), *found]


def _find_fp8(stored: Mapping[str, StoredTensor], quantization: Quantization) -> Iterator[Encoding]:
    for name, tensor in stored.items():
        if tensor.spec.dtype in FP8_DTYPES:
            scales = _scales(stored, name)
            _check_scale_dtype(scales, exponents=quantization.scale_fmt == EXPONENT_FORMAT)
            shape = _matrix(tensor)
            block = _fp8_block(quantization, shape, scales.spec.shape)
            yield _checked(Encoding(name=name, shape=shape, block=block, numbers=tensor, scales=scales))


def _fp8_block(quantization: Quantization, shape: tuple[int, int], scales: tuple[int, ...]) -> Block:
    """Return what shares a scale; without weight_block_size the scales' shape says it."""
    if quantization.weight_block_size:
        rows, columns = quantization.weight_block_size
        return rows, columns
    if prod(scales) == 1:
        return shape
    return (1, shape[1]) if scales in ((shape[0],), (shape[0], 1)) else DEFAULT_BLOCK


class _CompressedTensors:
    """Finds the weights of compressed-tensors' formats."""

    def __init__(self, stored: Mapping[str, StoredTensor], quantization: Quantization) -> None:
        self._stored, self._format = stored, quantization.format
        self._groups = quantization.config_groups or {}
        self._modules = {
            name.removesuffix(PACKED_SUFFIX).removesuffix(".weight"): name
            for name, tensor in stored.items()
            if name.endswith(f".weight{PACKED_SUFFIX}")
            or (name.endswith(".weight") and tensor.spec.dtype in (*FP8_DTYPES, "I8"))
        }

    def find(self) -> Iterator[Encoding]:
        """Yield them in the order of their tensors."""
        groups = self._match_groups()
        for module, name in self._modules.items():
            group = groups.get(module)
            weights = self._groups[group].weights if group is not None else None
            if weights is None:
                raise TensorError(
                    f"{name} is quantized, but no group of quantization_config.config_groups says how"
                )
            assert group is not None
            if name.endswith(PACKED_SUFFIX):
                yield _checked(self._packed(f"{module}.weight", group, weights))
            else:
                yield _checked(self._plain(name, group, weights))

    def _match_groups(self) -> dict[str, str]:
        """Return each module's group: that which names it, else that of all Linears."""
        found: dict[str, str] = {}
        if len(self._groups) == 1:  # as everywhere; no pattern of a stranger's need be tried
            (only,) = self._groups
            return dict.fromkeys(self._modules, only)
        for name, group in self._groups.items():
            for module in find_matching(self._modules, group.targets or [], "targets"):
                found.setdefault(module, name)
        for name, group in self._groups.items():
            if "Linear" in _classes(group):
                for module in self._modules:
                    found.setdefault(module, name)
        return found

    def _plain(self, name: str, group: str, weights: QuantizedWeights) -> Encoding:
        """Return a weight of one number an element."""
        numbers = self._stored[name]
        expected = "int" if numbers.spec.dtype == "I8" else "float"
        if (weights.type or "int", weights.num_bits) != (expected, 8):
            raise TensorError(
                f"{name} is {numbers.spec.dtype}, but {group} of quantization_config says type "
                f"{weights.type} of {weights.num_bits} bits"
            )
        scales = _scales(self._stored, name)
        _check_scale_dtype(scales)
        shape = _matrix(numbers)
        block = _block(name, shape, weights)
        zero_points = self._stored.get(f"{name}_zero_point")
        return Encoding(
            name=name,
            shape=shape,
            block=block,
            numbers=numbers,
            scales=scales,
            zero_points=zero_points,
            group=group,
        )

    def _packed(self, name: str, group: str, weights: QuantizedWeights) -> Encoding:
        """Return a weight of codes in int32 words."""
        numbers = self._stored[name + PACKED_SUFFIX]
        num_bits = weights.num_bits
        if numbers.spec.dtype != "I32" or (weights.type or "int") != "int" or num_bits not in PACKED_BITS:
            raise UnsupportedModelError(
                f"{numbers.spec.name} is {numbers.spec.dtype} of {weights.type or 'int'} {num_bits} bits; "
                "moe4 reads I32 words of int 4 or 8 bits"
            )
        if f"{name}_g_idx" in self._stored:
            raise UnsupportedModelError(
                f"{name}_g_idx puts the columns of groups in an order of their own (actorder group), which "
                "moe4 does not read"
            )
        scales, stored_shape = _scales(self._stored, name), self._stored.get(f"{name}_shape")
        if stored_shape is None:
            raise TensorError(
                f"{numbers.spec.name} has no {name}_shape beside it; download the checkpoint again"
            )
        if stored_shape.spec.dtype not in ("I32", "I64") or stored_shape.spec.shape != (2,):
            raise TensorError(
                f"{name}_shape must be I32 or I64 [2], found {stored_shape.spec.dtype} "
                f"{list(stored_shape.spec.shape)}"
            )
        _check_scale_dtype(scales)
        rows, words = _matrix(numbers)
        shape = rows, words * 32 // num_bits
        zero_points = self._stored.get(f"{name}_zero_point")
        if (zero_points is None) == (weights.symmetric is False):
            found = "missing" if zero_points is None else "there"
            raise TensorError(
                f"{name}_zero_point is {found}, but {group} of quantization_config says symmetric "
                f"{'false' if zero_points is None else 'true'}"
            )
        return Encoding(
            name=name,
            shape=shape,
            block=_block(name, shape, weights),
            numbers=numbers,
            scales=scales,
            zero_points=zero_points,
            stored_shape=stored_shape,
            num_bits=num_bits or 0,
            group=group,
        )


def _classes(group: QuantizedGroup) -> list[str]:
    return [target for target in group.targets or [] if not target.startswith(PATTERN)]


def _block(name: str, shape: tuple[int, int], weights: QuantizedWeights) -> Block:
    """Return what shares a scale, by a group's strategy."""
    strategy = weights.strategy or ("group" if (weights.group_size or 0) > 0 else "tensor")
    if strategy == "tensor":
        return shape
    if strategy == "channel" or (strategy == "group" and weights.group_size == -1):
        return 1, shape[1]
    if strategy == "group" and (weights.group_size or 0) > 0:
        return 1, weights.group_size or 0
    structure = weights.block_structure
    is_pair = isinstance(structure, list) and len(structure) == 2
    if (
        strategy == "block"
        and is_pair
        and all(type(size) is int and 0 < size <= 1 << 20 for size in structure)
    ):
        return structure[0], structure[1]
    raise UnsupportedModelError(
        f"{name} is quantized with the strategy {strategy!r:.40} (group_size {weights.group_size}, "
        f"block_structure {structure!r:.40}); moe4 reads tensor, channel, group and block"
    )


def _scales(stored: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    """Return the scales of a weight, under the one of two names that is there."""
    found = [stored[name + suffix] for suffix in SCALE_SUFFIXES if name + suffix in stored]
    if len(found) == 1:
        return found[0]
    tensor = stored.get(name) or stored[name + PACKED_SUFFIX]
    if found:
        raise TensorError(f"{name} has both a {found[0].spec.name} and a {found[1].spec.name}; remove one")
    raise TensorError(
        f"{tensor.spec.name} is {tensor.spec.dtype} but has no {name}{SCALE_SUFFIXES[0]} or "
        f"{SCALE_SUFFIXES[1]} with its scales"
    )


def _check_scale_dtype(scales: StoredTensor, *, exponents: bool = False) -> None:
    dtype = scales.spec.dtype
    if dtype not in SCALE_DTYPES and not (dtype == "U8" and exponents):
        raise TensorError(
            f"{scales.spec.name} has the dtype {dtype}; expected one of {', '.join(SCALE_DTYPES)}, or U8 "
            f'where quantization_config says "scale_fmt": "{EXPONENT_FORMAT}"'
        )


def _matrix(tensor: StoredTensor) -> tuple[int, int]:
    if len(tensor.spec.shape) != 2:
        raise TensorError(
            f"{tensor.spec.name} is {tensor.spec.dtype} of shape {list(tensor.spec.shape)}; expected a matrix"
        )
    rows, columns = tensor.spec.shape
    return rows, columns


def _checked(encoding: Encoding) -> Encoding:
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
    points = encoding.zero_points
    if points is None:
        return encoding
    if encoding.num_bits:
        blocks = -(-encoding.shape[0] * encoding.num_bits // 32), blocks[1]
        shapes = {blocks}
    dtype = "I32" if encoding.num_bits else "I8"
    if points.spec.dtype != dtype or points.spec.shape not in shapes:
        raise TensorError(
            f"{points.spec.name} must be {dtype} {list(blocks)}, found {points.spec.dtype} "
            f"{list(points.spec.shape)}"
        )
    return encoding
