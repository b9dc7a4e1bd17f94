"""How a quantized weight is stored, and how it is decoded.

Every format read here is numbers times scales, W = (q - z) * s, where a scale holds for a block of W. The
numbers are plain (FP8, INT8), INT4 or INT8 codes in int32 words, or E2M1 codes, two in a byte. Which tensors
make up a weight is found in `formats/`.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from moe4.checkpoint.header import StoredTensor, TensorSpec
from moe4.errors import TensorError

if TYPE_CHECKING:
    from torch import Tensor

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
EXPONENT_DTYPES = ("F8_E8M0", "U8")
"""Of scales that are powers of two: a byte is the exponent, plus 127."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What FP4's sixteen codes mean."""

Block = tuple[int, int]
"""Rows and columns that share a scale."""
Form = Literal["numbers", "words", "e2m1"]
Role = Literal["numbers", "scales", "divisor", "zero_points", "column_groups", "stored_shape"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """One weight [out, in] as it is stored.

    form: what `numbers` holds: a number an element, int32 words of `num_bits` a code, or bytes of two E2M1
    codes, the first in the low bits. divisor: one number that all scales are divided by. column_groups: the
    group that each column's scale is in, where groups are not columns side by side. layout: what the format's
    own library calls it. group: the name of its group in compressed-tensors' config.
    """

    name: str
    shape: tuple[int, int]
    block: Block
    numbers: StoredTensor
    scales: StoredTensor
    form: Form = "numbers"
    num_bits: int = 8
    divisor: StoredTensor | None = None
    zero_points: StoredTensor | None = None
    column_groups: StoredTensor | None = None
    stored_shape: StoredTensor | None = None
    layout: str
    group: str | None = None

    @property
    def roles(self) -> dict[Role, StoredTensor]:
        """The tensors it is stored in, by what they are."""
        found: dict[Role, StoredTensor | None] = {
            "numbers": self.numbers,
            "scales": self.scales,
            "divisor": self.divisor,
            "zero_points": self.zero_points,
            "column_groups": self.column_groups,
            "stored_shape": self.stored_shape,
        }
        return {role: part for role, part in found.items() if part is not None}

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The same, in order."""
        return tuple(self.roles.values())

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

    @property
    def is_coarse(self) -> bool:
        """Whether it holds codes, on a grid that is coarser than FP8's."""
        return self.form != "numbers"

    def is_released_as(self, group_size: int) -> bool:
        """Say whether its codes and scales are those of a release with this group size, as they are."""
        return (
            self.form == "words"
            and self.num_bits == 4
            and self.zero_points is None
            and self.column_groups is None
            and self.block == (1, group_size)
            and self.scales.spec.dtype == "BF16"
        )

    def accept(self, pieces: tuple["Tensor", ...], *, pinned: bool = False) -> tuple["Tensor", ...]:
        """Return what `decode` takes of the stored parts: no shape, and exponents as the numbers they mean.

        Raises TensorError where the stored shape is another, or groups of columns are not whole.
        """
        given = dict(zip(self.roles, pieces, strict=True))
        if self.stored_shape is not None:
            shape = given.pop("stored_shape").tolist()
            if tuple(shape) != self.shape:
                raise TensorError(
                    f"{self.stored_shape.spec.name} must be {list(self.shape)}, as "
                    f"{self.numbers.spec.name} has it, found {shape}; the checkpoint is damaged"
                )
        if self.scales.spec.dtype in EXPONENT_DTYPES:
            import torch

            exponents = given["scales"].view(torch.float8_e8m0fnu)
            scales = torch.empty(exponents.shape, dtype=torch.float32, pin_memory=pinned)
            given["scales"] = scales.copy_(exponents)
        if self.column_groups is not None:
            given["column_groups"] = self._checked_groups(self.column_groups, given["column_groups"])
        return tuple(given.values())

    def _checked_groups(self, stored: StoredTensor, found: "Tensor") -> "Tensor":
        """Return each column's group, int64. -1 in every place says that groups lie side by side."""
        import torch

        (_, columns), (_, width) = self.shape, self.block
        groups = found.long()
        if bool((groups == -1).all()):
            return torch.arange(columns) // width
        number = columns // width
        inside = groups[(groups >= 0) & (groups < number)]
        if len(inside) < columns or not bool((torch.bincount(inside, minlength=number) == width).all()):
            raise TensorError(
                f"{stored.spec.name} must put {width} columns into each of {number} groups, and does not; "
                "the checkpoint is damaged"
            )
        return groups

    def decode(self, pieces: tuple["Tensor", ...]) -> "Tensor":
        """Return the weight, float32 [out, in], of what `accept` gave; every product is rounded once."""
        roles: tuple[Role, ...] = tuple(role for role in self.roles if role != "stored_shape")
        given = dict(zip(roles, pieces, strict=True))
        numbers, scales = self._numbers(given["numbers"]), given["scales"].reshape(self.num_blocks)
        if "divisor" in given:
            scales = scales.float() / given["divisor"]
        points = self._zero_points(given["zero_points"]) if "zero_points" in given else None
        if "column_groups" in given:
            order = given["column_groups"]
            shifted = numbers.float() if points is None else numbers.float() - points.float()[:, order]
            return shifted.mul_(scales.float()[:, order])
        if points is not None:
            numbers = numbers.float() - spread_blocks(points.float(), self.block, self.shape)
        return dequantize_blocks(numbers, scales, self.block)

    def _numbers(self, stored: "Tensor") -> "Tensor":
        if self.form == "e2m1":
            return unpack_e2m1(stored).view(self.shape)
        if self.form == "words":
            from moe4.checkpoint.packed import unpack

            return unpack(stored, self.num_bits)
        return stored

    def _zero_points(self, stored: "Tensor") -> "Tensor":
        if self.form != "words":
            return stored.reshape(self.num_blocks)
        from moe4.checkpoint.packed import unpack

        return unpack(stored.T, self.num_bits).T[: self.shape[0]]


def unpack_e2m1(stored: "Tensor") -> "Tensor":
    """Return what bytes [..., n] of two E2M1 codes each mean, float32 [..., 2 n]; low bits come first."""
    import torch

    values = torch.tensor(E2M1, device=stored.device, dtype=torch.float32)
    codes = torch.arange(256, device=stored.device)
    pairs = torch.stack((values[codes & 0xF], values[codes >> 4]), dim=1)
    places = stored.contiguous().view(torch.uint8).flatten().int()
    return pairs.index_select(0, places).view(*stored.shape[:-1], -1)


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
