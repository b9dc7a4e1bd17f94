"""Experts stored fused: all of a layer's gates and ups in one tensor, and all of its downs in another.

So gpt-oss, Llama-4 and others are published, and so transformers saves its modules with
`save_original_format=False`. An expert's weights lie there one after another, so each is a piece of the file,
or a cut of one, and nothing is copied. Beside NAME, [experts, out, in] or [experts, in, out], may lie

    NAME_scale_inv or NAME_scale  of FP8: one for an expert or for each of its weights, one for each output,
                                  or one for each block; the axes are those of NAME
    NAME_blocks and NAME_scales   in the place of NAME, of MXFP4: always [experts, out, in / 32, 16] and
                                  [experts, out, in / 32]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from moe4.checkpoint.encodings import FP8_DTYPES
from moe4.checkpoint.formats.fp8 import DEFAULT_BLOCK
from moe4.checkpoint.formats.mxfp4 import BLOCK_BYTES, BLOCKS_SUFFIX, SCALES_SUFFIX
from moe4.checkpoint.formats.parts import SCALE_SUFFIXES
from moe4.checkpoint.header import ITEM_BITS, Cut, StoredTensor, TensorSpec
from moe4.checkpoint.source import PLAIN_DTYPES, Checkpoint
from moe4.config.parts import Quantization
from moe4.errors import TensorError
from moe4.model.names import Part
from moe4.model.outline import ExpertShape, Outline

INPUT_SUFFIXES = ("_activation_scale", "_input_scale")
BLOCK_COLUMNS = 2 * BLOCK_BYTES


def take_experts_apart(checkpoint: Checkpoint, network: Outline) -> None:
    """Have a checkpoint with fused experts show its tensors as the family's published ones hold them.

    Raises TensorError for a fused tensor of another dtype or shape than transformers gives it.
    """
    stored = checkpoint.stored
    names = {name: name for name in stored}
    pieces: dict[str, list[StoredTensor]] = {}
    quantization = checkpoint.config.quantization or Quantization()
    for experts in filter(None, network.experts):
        pieces.update(_FusedExperts(stored, experts, quantization).pieces())
    whole = next((t for name, t in stored.items() if name not in pieces and _is_whole_fp8(t)), None)
    if whole is not None:
        raise TensorError(
            f"{whole.spec.name} is {whole.spec.dtype} {list(whole.spec.shape)}; expected a matrix, or the "
            "experts of a layer that the config describes"
        )
    if not pieces:
        return
    for layer in range(network.num_layers):
        names.update(network.module_names(layer))
    taken: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        for piece in pieces.get(name, [_renamed(tensor, names[name])]):
            if piece.spec.name in taken:
                raise TensorError(f"{checkpoint.folder} holds {piece.spec.name} twice: apart, and as {name}")
            taken[piece.spec.name] = piece
    checkpoint.show(taken)


def _is_whole_fp8(tensor: StoredTensor) -> bool:
    return tensor.spec.dtype in FP8_DTYPES and len(tensor.spec.shape) == 3


def _renamed(tensor: StoredTensor, name: str) -> StoredTensor:
    return replace(tensor, spec=replace(tensor.spec, name=name))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where one weight of an expert lies in tensors that hold all of them."""

    expert: int
    number: int
    """Of the weight among the `num_parts` that lie along `out`."""
    num_parts: int
    is_turned: bool
    is_interleaved: bool

    def cut(self, fused: StoredTensor, name: str) -> StoredTensor:
        """Return the weight's piece of a tensor [experts, out, ...] or turned [experts, in, out].

        What has only one place along `out` belongs to all weights of the expert.
        """
        slab, bits = fused.spec.shape[1:], ITEM_BITS[fused.spec.dtype]
        offset = fused.offset + self.expert * prod(slab) * bits // 8
        is_turned = self.is_turned and len(slab) == 2
        axis = 1 if is_turned else 0
        size = slab[axis] if slab else 1
        if size == 1 and not is_turned:
            return self._piece(fused, name, slab, offset)
        step = size // self.num_parts if size > 1 else 1
        first = self.number if size > 1 else 0
        places = range(first * step, (first + 1) * step)
        if self.is_interleaved and size > 1:
            places = range(first, size, self.num_parts)
        if is_turned:
            cut = Cut(slab=slab, axis=1, places=places, is_turned=True)
            return self._piece(fused, name, (len(places), slab[0]), offset, cut)
        shape = (len(places), *slab[1:])
        if places.step > 1:
            return self._piece(fused, name, shape, offset, Cut(slab=slab, axis=0, places=places))
        return self._piece(fused, name, shape, offset + places.start * prod(slab[1:]) * bits // 8)

    @staticmethod
    def _piece(
        fused: StoredTensor, name: str, shape: tuple[int, ...], offset: int, cut: Cut | None = None
    ) -> StoredTensor:
        spec = TensorSpec(name=name, dtype=fused.spec.dtype, shape=shape)
        return StoredTensor(spec=spec, path=fused.path, offset=offset, cut=cut)


class _FusedExperts:
    """One layer's fused tensors."""

    def __init__(
        self,
        stored: Mapping[str, StoredTensor],
        experts: ExpertShape,
        quantization: Quantization,
    ) -> None:
        self._stored, self._experts, self._parts = stored, experts, experts.fused
        self._quant_method = quantization.quant_method
        self._block_rows, _ = quantization.weight_block_size or DEFAULT_BLOCK
        self._is_turned = self._find_turn()

    def pieces(self) -> dict[str, list[StoredTensor]]:
        """Return what each stored tensor is taken apart into, by its name."""
        found = {}
        for name, parts in self._parts.items():
            for tensor, suffix in self._check(name, parts):
                is_turned = self._is_turned and suffix not in (BLOCKS_SUFFIX, SCALES_SUFFIX)
                found[tensor.spec.name] = list(self._take(tensor, parts, suffix, is_turned))
            for suffix in INPUT_SUFFIXES if found else ():
                tensor_or_none = self._stored.get(name + suffix)
                if tensor_or_none is not None:  # by the name that those of plain Linears have
                    renamed = f"{name}.{suffix.removeprefix('_')}"
                    found[name + suffix] = [_renamed(tensor_or_none, renamed)]
        return found

    def _find_turn(self) -> bool:
        """Say whether the tensors are [experts, in, out]: both are as the family has them, or both turned."""
        layout = self._experts.layout
        if not layout.turns_on_load:
            return layout.is_turned
        found = {name: self._stored[name].spec.shape for name in self._parts if name in self._stored}
        expected = {name: self._shape(self._parts[name], layout.is_turned) for name in found}
        return layout.is_turned if found == expected else not layout.is_turned

    def _shape(self, parts: tuple[Part, ...], is_turned: bool) -> tuple[int, ...]:
        rows, columns = self._experts.weight_shape(parts[0])
        rows *= len(parts)
        return (self._experts.num_experts, *((columns, rows) if is_turned else (rows, columns)))

    def _check(self, name: str, parts: tuple[Part, ...]) -> Iterator[tuple[StoredTensor, str]]:
        """Yield the tensors of one or two kinds of weights that are there, with their names' suffixes."""
        if name + BLOCKS_SUFFIX in self._stored:
            yield from self._check_mxfp4(name, parts)
        fused = self._stored.get(name)
        if fused is None:
            return
        shape, dtypes = self._shape(parts, self._is_turned), (*PLAIN_DTYPES, *FP8_DTYPES)
        if fused.spec.dtype not in dtypes or fused.spec.shape != shape:
            raise TensorError(
                f"{name} must be {list(shape)} in one of {', '.join(dtypes)}, as transformers "
                f"stacks experts, found {fused.spec.dtype} {list(fused.spec.shape)}"
            )
        yield fused, ""
        for suffix in SCALE_SUFFIXES:
            scales = self._stored.get(name + suffix)
            if scales is not None:
                self._check_scales(scales, parts)
                yield scales, suffix

    def _check_mxfp4(self, name: str, parts: tuple[Part, ...]) -> Iterator[tuple[StoredTensor, str]]:
        if self._quant_method != "mxfp4":
            raise TensorError(
                f"{name}{BLOCKS_SUFFIX} is MXFP4, but quantization_config says quant_method "
                f"{self._quant_method}"
            )
        num_experts, rows, columns = self._shape(parts, False)
        num_blocks = columns // BLOCK_COLUMNS
        shapes = {
            BLOCKS_SUFFIX: (num_experts, rows, num_blocks, BLOCK_BYTES),
            SCALES_SUFFIX: (num_experts, rows, num_blocks),
        }
        for suffix, shape in shapes.items():
            tensor = self._stored.get(name + suffix)
            found = "nothing" if tensor is None else f"{tensor.spec.dtype} {list(tensor.spec.shape)}"
            if tensor is None or tensor.spec.shape != shape or tensor.spec.dtype != "U8":
                raise TensorError(
                    f"{name}{suffix} must be U8 {list(shape)}, as gpt-oss stacks experts, found {found}"
                )
            yield tensor, suffix

    def _check_scales(self, scales: StoredTensor, parts: tuple[Part, ...]) -> None:
        """Raise TensorError where a scale would be that of gates and of ups, or of two experts."""
        rows, _ = self._experts.weight_shape(parts[0])
        num_experts, *slab = scales.spec.shape or (0,)
        size = (slab[-1] if self._is_turned else slab[0]) if slab else 1
        each = size // len(parts)
        is_whole = size in (1, len(parts) * rows) or (
            size % len(parts) == 0
            and not (self._experts.layout.is_interleaved and len(parts) > 1)
            and (each == 1 or each * self._block_rows == rows)
        )
        if num_experts != self._experts.num_experts or len(slab) > 2 or not is_whole:
            raise TensorError(
                f"{scales.spec.name} is {list(scales.spec.shape)}; expected for each of "
                f"{self._experts.num_experts} experts one scale, or one for each weight, row or "
                f"{self._block_rows} rows of {len(parts)} x {rows}"
            )

    def _take(
        self, fused: StoredTensor, parts: tuple[Part, ...], suffix: str, is_turned: bool
    ) -> Iterator[StoredTensor]:
        for expert in range(self._experts.num_experts):
            for number, part in enumerate(parts):
                place = _Place(
                    expert=expert,
                    number=number,
                    num_parts=len(parts),
                    is_turned=is_turned,
                    is_interleaved=self._experts.layout.is_interleaved and len(parts) > 1,
                )
                yield place.cut(fused, self._experts.weight_name(expert, part) + suffix)
