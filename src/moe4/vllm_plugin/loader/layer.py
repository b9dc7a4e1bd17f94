"""One layer's routed experts as a release's shards hold them: checked by their headers, found by address."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from moe4.checkpoint.header import StoredTensor
from moe4.checkpoint.mapping import MappedShard
from moe4.checkpoint.shard import read_tensor
from moe4.errors import MissingFileError, TensorError
from moe4.kernels.table import ALIGNMENTS, COLUMNS

LEAVES = ("weight_packed", "weight_scale")
SCALE_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertLayout:
    """What a layer's experts must look like on disk, and which part of them this rank takes.

    prefix: the experts' name in the checkpoint, `model.layers.1.mlp.experts`.
    projections: the names of gate, up and down there.
    experts: numbers, in the checkpoint, of this rank's experts.
    inter: the width of an expert of the checkpoint; `share` its part on this rank, from `first` on.
    """

    prefix: str
    projections: tuple[str, str, str]
    experts: tuple[int, ...]
    hidden: int
    inter: int
    first: int
    share: int
    group_size: int

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Return the checkpoint's shapes in the order of the kernel's columns."""
        wide = ((self.inter, self.hidden), (self.inter, self.hidden), (self.hidden, self.inter))
        words = tuple((rows, columns // 8) for rows, columns in wide)
        scales = tuple((rows, columns // self.group_size) for rows, columns in wide)
        return (*words, *scales)

    def skip_bytes(self) -> tuple[int, ...]:
        """Return how far behind a matrix's beginning this rank's part of it begins."""
        rows = self.first * self.hidden
        group = self.group_size
        return (
            rows // 2,
            rows // 2,
            self.first // 2,
            rows // group * 2,
            rows // group * 2,
            self.first // group * 2,
        )

    def name(self, expert: int, column: str) -> str:
        """Return the checkpoint's name of a tensor; `column` is one of the kernel's."""
        part, _, scale = column.partition("_")
        projection = self.projections[("gate", "up", "down").index(part)]
        return f"{self.prefix}.{expert}.{projection}.{LEAVES[1] if scale else LEAVES[0]}"


@dataclass(kw_only=True, slots=True)
class MappedLayer:
    """Addresses of a layer's experts, and what keeps them valid.

    table: int64 [experts, 6], as `moe4.kernels.table` describes it.
    stored: for each expert its six tensors on disk.
    ranges: for each expert the (address, bytes) of what is mapped.
    maps: the shards that `table` points into.
    kept: what it points to that is not mapped.
    copied: tensors that could not be used where they lie, by why.
    """

    table: Tensor
    stored: list[list[StoredTensor]]
    ranges: list[list[tuple[int, int]]]
    maps: list[MappedShard]
    kept: list[Tensor] = field(default_factory=list)
    copied: dict[str, int] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of the experts on disk."""
        return sum(stored.spec.num_bytes for expert in self.stored for stored in expert)


def map_layer(
    layout: ExpertLayout, stored: Mapping[str, StoredTensor], shards: Mapping[Path, MappedShard]
) -> MappedLayer:
    """Find the layer's experts. Reads no expert; copies tensors that are not on their types' boundaries.

    stored: the experts' tensors by vLLM's names. shards: the mappings of the files they are in.

    Raises MissingFileError where a tensor is not there, TensorError where it has another dtype or shape.
    """
    shapes, skips = layout.shapes(), layout.skip_bytes()
    layer = MappedLayer(
        table=torch.zeros(len(layout.experts), len(COLUMNS), dtype=torch.int64),
        stored=[],
        ranges=[],
        maps=list(shards.values()),
    )
    for slot, expert in enumerate(layout.experts):
        parts, ranges = [], []
        for column, name in enumerate(COLUMNS):
            found = _find(layout, stored, layout.name(expert, name), shapes[column], scale=column > 2)
            shard = shards[found.path]
            address = shard.address_of(found)
            why = _why_copied(found, address, ALIGNMENTS[column])
            if why:
                tensor = read_tensor(found)
                if column > 2:
                    tensor = tensor.to(torch.bfloat16)
                layer.kept.append(tensor)
                layer.copied[why] = layer.copied.get(why, 0) + tensor.nbytes
                address = tensor.data_ptr()
            else:
                # Of down, a rank's columns lie all over the matrix.
                share = found.spec.num_bytes * layout.share // layout.inter
                whole = name.startswith("down")
                ranges.append((address, found.spec.num_bytes) if whole else (address + skips[column], share))
            layer.table[slot, column] = address + skips[column]
            parts.append(found)
        layer.stored.append(parts)
        layer.ranges.append(join_ranges(ranges))
    return layer


def _find(
    layout: ExpertLayout,
    stored: Mapping[str, StoredTensor],
    name: str,
    shape: tuple[int, int],
    *,
    scale: bool,
) -> StoredTensor:
    found = stored.get(name)
    if found is None:
        raise MissingFileError(
            f"the release has no {name}: run `moe4 verify` on it, or load it with --load-format auto if its "
            "experts are stored in another way"
        )
    dtypes = SCALE_DTYPES if scale else ("I32",)
    if found.spec.dtype not in dtypes or found.spec.shape != shape:
        raise TensorError(
            f"{name} in {found.path} is {found.spec.dtype} {list(found.spec.shape)}, expected "
            f"{' or '.join(dtypes)} {list(shape)} for group size {layout.group_size}: the release does "
            "not fit its config.json"
        )
    return found


def _why_copied(found: StoredTensor, address: int, alignment: int) -> str | None:
    if found.spec.dtype in ("F16", "F32"):
        return f"scales in {found.spec.dtype} are rounded to BF16"
    if address % alignment:
        return "tensors do not begin on a boundary of their type"
    return None


def join_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (address, bytes) in order, with neighbours made one."""
    joined: list[tuple[int, int]] = []
    for address, num_bytes in sorted(ranges):
        if joined and joined[-1][0] + joined[-1][1] == address:
            joined[-1] = (joined[-1][0], joined[-1][1] + num_bytes)
        else:
            joined.append((address, num_bytes))
    return joined
