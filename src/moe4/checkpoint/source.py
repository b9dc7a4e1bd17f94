"""A source checkpoint's tensors by name, in BF16 or block-FP8, read by the rules of `index.py`."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from moe4.checkpoint.header import TensorSpec
from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME, CheckpointIndex
from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.shard import (
    DTYPES,
    Shard,
    StoredTensor,
    iterate_bytes,
    iterate_rows,
    read_tensor,
    tensor_bytes,
)
from moe4.checkpoint.side_files import find_side_files
from moe4.checkpoint.source_formats import (
    EXPONENT_FORMAT,
    FP8_DTYPES,
    PLAIN_DTYPES,
    SCALE_DTYPES,
    SCALE_SUFFIX,
    dequantize_blocks,
    fp8_block_size,
)
from moe4.errors import TensorError
from moe4.files.durable import file_sha256
from moe4.files.regular import read_json_object

__all__ = ["CONFIG_NAME", "INDEX_NAME", "Checkpoint", "read_json_object"]

NUM_SAMPLES, SAMPLE_BYTES = 32, 4096


class Checkpoint:
    """A source checkpoint: its config, its tensors by name.

    `tensors` leaves out the scales of FP8 weights, which belong to their weights.
    """

    def __init__(self, folder: Path) -> None:
        """Read the folder's headers. Raises CheckpointError or one of its children."""
        index = CheckpointIndex(folder)
        self.folder, self.config, self.shards = folder, index.config, index.shards
        self.unlisted = index.unlisted
        self._stored = index.tensors
        self.reads: ReadLog | None = None
        """Where whole reads are recorded, if anywhere."""
        self.bytes_read = 0
        """Of tensors' data, since this was opened."""
        self._count = threading.Lock()
        self.block_size = fp8_block_size(self.config)
        self.tensors = {name: stored for name, stored in self._stored.items() if not self._is_scale(name)}
        for name in self.tensors:
            if self.is_fp8(name):
                self._check_fp8(name)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors, scales included."""
        return sum(stored.spec.num_bytes for stored in self._stored.values())

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor's dtype and shape as they are stored."""
        return {name: stored.spec for name, stored in self.tensors.items()}

    def is_fp8(self, name: str) -> bool:
        """Say whether a tensor is stored in FP8 with block scales, which opening the checkpoint has seen."""
        return self._stored[name].spec.dtype in FP8_DTYPES

    def load(self, name: str) -> Tensor:
        """Read a tensor: float32 if it is FP8 with its blocks' scales applied, else in its own dtype.

        Raises TensorError if it holds NaN or Inf.
        """
        return self.decode(name, self.read(name))

    def read(self, name: str, *, pinned: bool = False) -> tuple[Tensor, ...]:
        """Return a tensor as it is stored, and its blocks' scales if it is FP8. Any thread may call this.

        Scales that are stored as exponents come as the float32 powers of two that they mean. `pinned` memory
        is for copies to a GPU.
        """
        pieces = tuple(read_tensor(stored, pinned=pinned) for stored in self._parts(name))
        self._add_bytes(sum(piece.nbytes for piece in pieces))
        if self.reads is not None:
            self.reads.add(name, map(tensor_bytes, pieces))
        if len(pieces) == 2 and pieces[1].itemsize == 1:
            exponents = pieces[1].view(torch.float8_e8m0fnu)
            scales = torch.empty(exponents.shape, dtype=torch.float32, pin_memory=pinned)
            pieces = (pieces[0], scales.copy_(exponents))
        return pieces

    def decode(self, name: str, pieces: tuple[Tensor, ...]) -> Tensor:
        """Return what `load` does, from what `read` gave."""
        tensor = pieces[0]
        if len(pieces) == 2:
            tensor = dequantize_blocks(tensor, pieces[1], self.block_size)
        self._check_finite(name, tensor)
        return tensor

    def iterate(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's stored bytes in pieces of at most 16 MiB. Raises TensorError on NaN or Inf."""
        stored, digest = self._stored[name], hashlib.sha256()
        for piece in iterate_bytes(stored):
            self._add_bytes(len(piece))
            if stored.spec.dtype in PLAIN_DTYPES:
                self._check_finite(name, torch.frombuffer(bytearray(piece), dtype=DTYPES[stored.spec.dtype]))
            if self.reads is not None:
                digest.update(piece)
            yield piece
        if self.reads is not None and not self.is_fp8(name):
            self.reads.note(name, digest.hexdigest())

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix [rows, columns], some whole rows at a time, as `load` gives it.

        Raises TensorError on NaN or Inf.
        """
        if self.is_fp8(name):
            yield self.load(name)
            return
        digest = hashlib.sha256()
        for piece in iterate_rows(self._stored[name]):
            self._add_bytes(piece.nbytes)
            self._check_finite(name, piece)
            if self.reads is not None:
                digest.update(tensor_bytes(piece))
            yield piece
        if self.reads is not None:
            self.reads.note(name, digest.hexdigest())

    def tensor_sha256(self, name: str) -> str:
        """Return the SHA-256 of a tensor's stored bytes, and its scales' if it is FP8. For any thread."""
        digest = hashlib.sha256()
        for stored in self._parts(name):
            for piece in iterate_bytes(stored):
                digest.update(piece)
        return digest.hexdigest()

    def paths(self, name: str) -> set[Path]:
        """Return the shards that a tensor and its scales lie in."""
        return {stored.path for stored in self._parts(name)}

    def _parts(self, name: str) -> tuple[StoredTensor, ...]:
        names = (name, name + SCALE_SUFFIX) if self.is_fp8(name) else (name,)
        return tuple(self._stored[part] for part in names)

    def _add_bytes(self, num_bytes: int) -> None:
        with self._count:
            self.bytes_read += num_bytes

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        # A sum is one pass without temporaries; only where it is not finite is every value looked at.
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
            return
        if not torch.isfinite(tensor).all():
            raise TensorError(
                f"{name} in {self._stored[name].path} holds NaN or Inf; the checkpoint is damaged, or was "
                "saved from a run that diverged"
            )

    def side_files(self) -> tuple[Path, ...]:
        """Return the files beside the weights that go into a release as they are, sorted by name.

        Raises UnsafePathError where one is a link that leads out of the checkpoint.
        """
        return find_side_files(self.folder, self.shards).files

    def digest(self) -> str:
        """Return a SHA-256 over the config, the index, and every shard's size, header and samples.

        The samples of its data tell a model from another of the same shapes without reading all of it.
        """
        digest = hashlib.sha256(file_sha256(self.folder / CONFIG_NAME).encode())
        if (self.folder / INDEX_NAME).is_file():
            digest.update(file_sha256(self.folder / INDEX_NAME).encode())
        for name, shard in self.shards.items():
            digest.update(f"{name} {shard.num_bytes} {shard.header_sha256}\n".encode())
            digest.update(_sample(shard))
        return digest.hexdigest()

    def _is_scale(self, name: str) -> bool:
        weight = self._stored.get(name.removesuffix(SCALE_SUFFIX)) if name.endswith(SCALE_SUFFIX) else None
        return weight is not None and weight.spec.dtype in FP8_DTYPES

    def _check_fp8(self, name: str) -> None:
        spec = self._stored[name].spec
        scales = self._stored.get(name + SCALE_SUFFIX)
        if scales is None or len(spec.shape) != 2:
            raise TensorError(
                f"{name} is {spec.dtype} but has no {name + SCALE_SUFFIX} with its blocks' scales"
            )
        blocks = tuple(-(-size // block) for size, block in zip(spec.shape, self.block_size, strict=True))
        if scales.spec.shape != blocks:
            raise TensorError(
                f"{scales.spec.name} must have shape {list(blocks)} for {name} of shape {list(spec.shape)} "
                f"in blocks of {list(self.block_size)}, found {list(scales.spec.shape)}"
            )
        dtype = scales.spec.dtype
        if dtype not in SCALE_DTYPES and not (dtype == "U8" and self._has_exponents()):
            raise TensorError(
                f"{scales.spec.name} has the dtype {dtype}; expected one of {', '.join(SCALE_DTYPES)}, or U8 "
                f'where quantization_config says "scale_fmt": "{EXPONENT_FORMAT}"'
            )

    def _has_exponents(self) -> bool:
        return self.config.quantization is not None and self.config.quantization.scale_fmt == EXPONENT_FORMAT


def _sample(shard: Shard) -> bytes:
    """Return some bytes of a shard's data, from places that only its size decides."""
    pieces = []
    with shard.path.open("rb", buffering=0) as file:
        for number in range(NUM_SAMPLES):
            file.seek(max(0, shard.num_bytes - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1))
            pieces.append(file.read(SAMPLE_BYTES))
    return b"".join(pieces)
