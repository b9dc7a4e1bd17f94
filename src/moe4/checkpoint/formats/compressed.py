"""`quant_method` compressed-tensors.

    weight F8 or I8 [out, in]              weight_scale by `strategy`: tensor, channel, group, block;
                                           weight_zero_point if it is not symmetric
    weight F8 [out, in]                    mxfp8-quantized: weight_scale U8 [out, in / 32], exponents plus 127
    weight_packed I32 [out, in * bits / 32]  pack-quantized, with weight_shape [2], weight_scale by channel or
                                           group, weight_zero_point if it is not symmetric, and weight_g_idx
                                           [in] for `actorder` group
    weight_packed U8 [out, in / 2]         nvfp4-pack-quantized: weight_scale F8 [out, in / 16], which
                                           weight_global_scale F32 [1] divides
    weight_packed U8 [out, in / 2]         mxfp4-pack-quantized: weight_scale U8 [out, in / 32], exponents
                                           plus 127

With several groups in the config, a weight is in the one whose targets name it.
"""

from collections.abc import Collection, Iterator, Mapping

from moe4.checkpoint.encodings import FP8_DTYPES, Block, Encoding
from moe4.checkpoint.formats.parts import (
    PACKED_SUFFIX,
    check_scale_dtype,
    checked,
    find_scales,
    require_dtype,
    require_matrix,
)
from moe4.checkpoint.header import StoredTensor
from moe4.checkpoint.matching import PATTERN, find_matching
from moe4.config.parts import Quantization, QuantizedGroup, QuantizedWeights
from moe4.errors import TensorError, UnsupportedModelError

PACKED_BITS = (4, 8)
PLAIN, WORDS, MXFP8 = "naive-quantized", "pack-quantized", "mxfp8-quantized"
NVFP4, MXFP4 = "nvfp4-pack-quantized", "mxfp4-pack-quantized"
FP4_GROUP_SIZES = {NVFP4: 16, MXFP4: 32}
GROUP_ORDERS = ("group", "dynamic", True)


class CompressedTensors:
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
        groups = match_groups(self._modules, self._groups)
        for module, name in self._modules.items():
            group = groups.get(module)
            weights = self._groups[group].weights if group is not None else None
            if weights is None:
                raise TensorError(
                    f"{name} is quantized, but no group of quantization_config.config_groups says how"
                )
            assert group is not None
            if not name.endswith(PACKED_SUFFIX):
                yield checked(self._plain(name, group, weights))
            elif self._stored[name].spec.dtype == "U8":
                yield checked(self._fp4(f"{module}.weight", group, weights))
            else:
                yield checked(self._words(f"{module}.weight", group, weights))

    def _format_of(self, group: str) -> str | None:
        """Return a group's own format, else that of all."""
        return self._groups[group].format or self._format

    def _plain(self, name: str, group: str, weights: QuantizedWeights) -> Encoding:
        """Return a weight of one number an element."""
        numbers = self._stored[name]
        expected = "int" if numbers.spec.dtype == "I8" else "float"
        if (weights.type or "int", weights.num_bits) != (expected, 8):
            raise TensorError(
                f"{name} is {numbers.spec.dtype}, but {group} of quantization_config says type "
                f"{weights.type} of {weights.num_bits} bits"
            )
        scales, has_exponents = find_scales(self._stored, name), self._format_of(group) == MXFP8
        if has_exponents:
            require_dtype(scales, "U8")
        check_scale_dtype(scales, exponents=has_exponents)
        shape, zero_points = require_matrix(numbers), self._stored.get(f"{name}_zero_point")
        if weights.symmetric is False:  # else some writers leave points of zero there
            _require_agreement(f"{name}_zero_point", zero_points, True, f"{group} says symmetric false")
        return Encoding(
            name=name,
            shape=shape,
            block=find_block(name, shape, weights),
            numbers=numbers,
            scales=scales,
            zero_points=zero_points,
            column_groups=self._column_groups(name, group, weights, shape[1]),
            layout=MXFP8 if has_exponents else PLAIN,
            group=group,
        )

    def _words(self, name: str, group: str, weights: QuantizedWeights) -> Encoding:
        """Return a weight of codes in int32 words."""
        numbers = self._stored[name + PACKED_SUFFIX]
        num_bits = weights.num_bits
        if numbers.spec.dtype != "I32" or (weights.type or "int") != "int" or num_bits not in PACKED_BITS:
            raise UnsupportedModelError(
                f"{numbers.spec.name} is {numbers.spec.dtype} of {weights.type or 'int'} {num_bits} bits; "
                "moe4 reads I32 words of int 4 or 8 bits, and U8 of float 4 bits"
            )
        scales = find_scales(self._stored, name)
        check_scale_dtype(scales)
        rows, words = require_matrix(numbers)
        shape = rows, words * 32 // num_bits
        zero_points = self._stored.get(f"{name}_zero_point")
        is_shifted = weights.symmetric is False
        said = f"{group} says symmetric {'false' if is_shifted else 'true'}"
        _require_agreement(f"{name}_zero_point", zero_points, is_shifted, said)
        return Encoding(
            name=name,
            shape=shape,
            block=find_block(name, shape, weights),
            numbers=numbers,
            scales=scales,
            zero_points=zero_points,
            column_groups=self._column_groups(name, group, weights, shape[1]),
            stored_shape=self._stored_shape(name, numbers),
            form="words",
            num_bits=num_bits,
            layout=WORDS,
            group=group,
        )

    def _fp4(self, name: str, group: str, weights: QuantizedWeights) -> Encoding:
        """Return a weight of two E2M1 codes a byte."""
        numbers, form = self._stored[name + PACKED_SUFFIX], self._format_of(group)
        size = FP4_GROUP_SIZES.get(form or "")
        said = (weights.type, weights.num_bits, weights.group_size)
        is_grouped = weights.strategy in (None, "group", "tensor_group")
        if form is None or size is None or said != ("float", 4, size) or not is_grouped:
            raise UnsupportedModelError(
                f"{numbers.spec.name} is U8, but {group} of quantization_config says format {form}, type "
                f"{said[0]} of {said[1]} bits by {weights.strategy} of {said[2]}; moe4 reads U8 as float of "
                f"4 bits: {NVFP4} in groups of 16, {MXFP4} in groups of 32"
            )
        scales, divisor = find_scales(self._stored, name), self._stored.get(f"{name}_global_scale")
        require_dtype(scales, "F8_E4M3" if form == NVFP4 else "U8")
        _require_agreement(f"{name}_global_scale", divisor, form == NVFP4, f"{group} says {form}")
        if divisor is not None and (divisor.spec.dtype, divisor.spec.shape) != ("F32", (1,)):
            raise TensorError(
                f"{divisor.spec.name} must be F32 [1], found {divisor.spec.dtype} {list(divisor.spec.shape)}"
            )
        rows, num_bytes = require_matrix(numbers)
        return Encoding(
            name=name,
            shape=(rows, 2 * num_bytes),
            block=(1, size),
            numbers=numbers,
            scales=scales,
            divisor=divisor,
            form="e2m1",
            layout=form,
            group=group,
        )

    def _stored_shape(self, name: str, numbers: StoredTensor) -> StoredTensor:
        stored_shape = self._stored.get(f"{name}_shape")
        if stored_shape is None:
            raise TensorError(
                f"{numbers.spec.name} has no {name}_shape beside it; download the checkpoint again"
            )
        if stored_shape.spec.dtype not in ("I32", "I64") or stored_shape.spec.shape != (2,):
            raise TensorError(
                f"{name}_shape must be I32 or I64 [2], found {stored_shape.spec.dtype} "
                f"{list(stored_shape.spec.shape)}"
            )
        return stored_shape

    def _column_groups(
        self, name: str, group: str, weights: QuantizedWeights, columns: int
    ) -> StoredTensor | None:
        """Return each column's group, where the columns of groups have an order of their own."""
        found, size = self._stored.get(f"{name}_g_idx"), weights.group_size or 0
        said = f"{group} says actorder {weights.actorder}"
        _require_agreement(f"{name}_g_idx", found, weights.actorder in GROUP_ORDERS, said)
        if found is None:
            return None
        spec = found.spec
        if spec.dtype not in ("I32", "I64") or spec.shape != (columns,) or size <= 0 or columns % size:
            raise TensorError(
                f"{spec.name} must be I32 or I64 [{columns}], whole groups of columns, found {spec.dtype} "
                f"{list(spec.shape)} and groups of {weights.group_size}"
            )
        return found


def match_groups(modules: Collection[str], groups: Mapping[str, QuantizedGroup]) -> dict[str, str]:
    """Return each module's group: that which names it, else whose pattern does, else that of all Linears.

    The first pattern in the order of letters counts, as in the library.
    """
    found: dict[str, str] = {}
    if len(groups) == 1:  # as everywhere; no pattern of a stranger's need be tried
        (only,) = groups
        return dict.fromkeys(modules, only)
    targets = {target: name for name, group in groups.items() for target in group.targets or []}
    for target in sorted(targets, key=lambda target: (target.startswith(PATTERN), target)):
        for module in find_matching(modules, [target], "targets"):
            found.setdefault(module, targets[target])
    if "Linear" in targets:
        for module in modules:
            found.setdefault(module, targets["Linear"])
    return found


def _require_agreement(name: str, found: StoredTensor | None, is_said: bool, said: str) -> None:
    """Raise TensorError where a tensor is there and the config says otherwise, or the other way round."""
    if (found is not None) is not is_said:
        there = "there" if found is not None else "missing"
        raise TensorError(f"{name} is {there}, but in quantization_config {said}")


def find_block(name: str, shape: tuple[int, int], weights: QuantizedWeights) -> Block:
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
