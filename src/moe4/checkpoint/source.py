"""A source checkpoint's tensors by name, plain or quantized, read by the rules of `index.py`.

What is in the headers needs no torch; reading a tensor does.
"""

import hashlib
import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from moe4.checkpoint.encodings import Encoding
from moe4.checkpoint.formats.find import ACTIVATION_LEAVES, find_encodings
from moe4.checkpoint.header import COPY_BYTES, FLOAT_DTYPES, Shard, StoredTensor, TensorSpec
from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME, CheckpointIndex
from moe4.checkpoint.provider import ShardProvider
from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.side_files import find_side_files
from moe4.errors import MissingFileError, TensorError
from moe4.files.durable import file_sha256
from moe4.files.regular import read_json_object

if TYPE_CHECKING:
    from torch import Tensor

    from moe4.checkpoint.shard import Slabs

__all__ = ["CONFIG_NAME", "FLOAT_DTYPES", "INDEX_NAME", "Checkpoint", "read_json_object"]

NUM_SAMPLES, SAMPLE_BYTES = 32, 4096
PLAIN_DTYPES = (*FLOAT_DTYPES, "F64")
"""What a plain weight may have that stays as it is; those that moe4 quantizes have one of FLOAT_DTYPES."""


class Checkpoint:
    """A source checkpoint: its config, its tensors by name.

    `tensors` has each quantized weight once, under its plain name, and leaves out what it is stored with.
    dropped: tensors for quantized activations, which no weight needs.
    """

    def __init__(
        self, folder: Path, provider: ShardProvider | None = None, *, family_as_is: bool = False
    ) -> None:
        """Read all headers; the shards are in the folder or come from a provider.

        family_as_is: the model's family need not be a listed one. Raises CheckpointError or one of its
        children.
        """
        index = CheckpointIndex(folder, provider=provider, family_as_is=family_as_is)
        self.provider = index.provider
        self.folder, self.config, self.shards = folder, index.config, index.shards
        self.unlisted = index.unlisted
        self.reads: ReadLog | None = None
        """Where whole reads are recorded, if anywhere."""
        self.bytes_read = 0
        """Of tensors' data, since this was opened."""
        self._count = threading.Lock()
        self.show(index.tensors)

    def show(self, stored: dict[str, StoredTensor]) -> None:
        """Take these for what the shards hold, and find out what they are to the model's weights."""
        self._stored = stored
        self._encodings = find_encodings(stored, self.config)
        decoded = {encoding.numbers.spec.name: encoding for encoding in self._encodings.values()}
        inside = {part.spec.name for encoding in decoded.values() for part in encoding.parts}
        quantized = bool(decoded) or self.config.quantization is not None
        self.dropped = [
            name
            for name in stored
            if quantized and name not in inside and name.rsplit(".", 1)[-1] in ACTIVATION_LEAVES
        ]
        inside.update(self.dropped)
        self.tensors = {}
        for name, tensor in stored.items():
            if name in decoded:
                self.tensors[decoded[name].name] = decoded[name].weight
            elif name not in inside:
                self.tensors[name] = tensor

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor as the shards hold it, scales included."""
        return dict(self._stored)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors, scales included."""
        return sum(stored.spec.num_bytes for stored in self._stored.values())

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor's dtype and shape as they are stored."""
        return {name: stored.spec for name, stored in self.tensors.items()}

    def encoding(self, name: str) -> Encoding | None:
        """Return how a quantized weight is stored; None for a plain tensor."""
        return self._encodings.get(name)

    def is_encoded(self, name: str) -> bool:
        """Say whether a tensor is stored quantized."""
        return name in self._encodings

    def load(self, name: str) -> "Tensor":
        """Read a tensor: float32 if it is stored quantized, else in its own dtype.

        Raises TensorError if it holds NaN or Inf.
        """
        return self.decode(name, self.read(name))

    def read_together(self, names: Iterable[str], *, pinned: bool = False) -> list[tuple["Tensor", ...]]:
        """Return tensors as `read` does; what several of them are cut out of is read once."""
        slabs: Slabs = {}
        return [self.read(name, pinned=pinned, slabs=slabs) for name in names]

    def place(self, name: str) -> tuple[Path | None, int | str]:
        """Return where what is read for a tensor lies, the same for all that are cut out of it."""
        stored = self._parts(name)[0]
        return (None, name) if stored.cut is None else (stored.path, stored.offset)

    def read(self, name: str, *, pinned: bool = False, slabs: "Slabs | None" = None) -> tuple["Tensor", ...]:
        """Return a tensor as it is stored, with its scales if it is quantized. Any thread may call this.

        Scales that are stored as exponents come as the float32 powers of two that they mean. `pinned` memory
        is for copies to a GPU. slabs: what other tensors were cut out of (`read_together`).
        """
        from moe4.checkpoint.shard import read_tensor, tensor_bytes

        with self.provider.holding(self.paths(name)):
            parts = self._parts(name)
            pieces = tuple(read_tensor(stored, pinned=pinned, slabs=slabs) for stored in parts)
        self._add_bytes(sum(piece.nbytes for piece in pieces))
        if self.reads is not None:
            self.reads.add(name, map(tensor_bytes, pieces))
        encoding = self._encodings.get(name)
        return pieces if encoding is None else encoding.accept(pieces, pinned=pinned)

    def read_parts(self, name: str) -> dict[str, "Tensor"]:
        """Return the tensors that a weight is stored in, by the names they have, as they are."""
        from moe4.checkpoint.shard import read_tensor

        with self.provider.holding(self.paths(name)):
            return {stored.spec.name: read_tensor(stored) for stored in self._parts(name)}

    def decode(self, name: str, pieces: tuple["Tensor", ...]) -> "Tensor":
        """Return what `load` does, from what `read` gave."""
        encoding = self._encodings.get(name)
        tensor = pieces[0] if encoding is None else encoding.decode(pieces)
        self._check_finite(name, tensor)
        return tensor

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield a plain tensor's bytes in pieces of at most 16 MiB, whatever they are."""
        for piece in self._bytes(self.tensors[name]):
            self._add_bytes(len(piece))
            yield piece

    def iterate(self, name: str) -> Iterator[bytes]:
        """Yield a plain tensor's bytes in pieces of at most 16 MiB. Raises TensorError on NaN or Inf."""
        import torch

        from moe4.checkpoint.shard import DTYPES

        assert name not in self._encodings, name
        stored, digest = self.tensors[name], hashlib.sha256()
        for piece in self.pieces(name):
            if stored.spec.dtype in PLAIN_DTYPES:
                self._check_finite(name, torch.frombuffer(bytearray(piece), dtype=DTYPES[stored.spec.dtype]))
            if self.reads is not None:
                digest.update(piece)
            yield piece
        if self.reads is not None:
            self.reads.note(name, digest.hexdigest())

    def iterate_rows(self, name: str) -> Iterator["Tensor"]:
        """Yield a matrix [rows, columns], some whole rows at a time, as `load` gives it.

        Raises TensorError on NaN or Inf.
        """
        if self.is_encoded(name):
            yield self.load(name)
            return
        from moe4.checkpoint.shard import iterate_rows, tensor_bytes

        digest = hashlib.sha256()
        with self.provider.holding(self.paths(name)):
            for piece in iterate_rows(self.tensors[name]):
                self._add_bytes(piece.nbytes)
                self._check_finite(name, piece)
                if self.reads is not None:
                    digest.update(tensor_bytes(piece))
                yield piece
        if self.reads is not None:
            self.reads.note(name, digest.hexdigest())

    def tensor_sha256(self, name: str) -> str:
        """Return the SHA-256 of a tensor's bytes, with its scales' if it is quantized. For any thread."""
        digest = hashlib.sha256()
        for stored in self._parts(name):
            for piece in self._bytes(stored):
                digest.update(piece)
        return digest.hexdigest()

    def paths(self, name: str) -> set[Path]:
        """Return the shards that a tensor and its scales lie in."""
        return {stored.path for stored in self._parts(name)}

    def _bytes(self, stored: StoredTensor) -> Iterator[bytes]:
        """Yield a tensor's bytes in pieces of at most 16 MiB."""
        if stored.cut is None:
            yield from self.provider.pieces(stored)
            return
        from moe4.checkpoint.shard import read_tensor, tensor_bytes

        with self.provider.holding({stored.path}):
            whole = tensor_bytes(read_tensor(stored))
        for start in range(0, len(whole), COPY_BYTES):
            yield bytes(whole[start : start + COPY_BYTES])

    def _parts(self, name: str) -> tuple[StoredTensor, ...]:
        if name not in self.tensors:
            raise MissingFileError(f"{self.folder} has no tensor {name}")
        encoding = self._encodings.get(name)
        return (self.tensors[name],) if encoding is None else encoding.parts

    def _add_bytes(self, num_bytes: int) -> None:
        with self._count:
            self.bytes_read += num_bytes

    def _check_finite(self, name: str, tensor: "Tensor") -> None:
        import torch

        if not tensor.is_floating_point() or tensor.numel() == 0:
            return
        low, high = torch.aminmax(tensor)  # one pass without temporaries; NaN stays NaN
        if not math.isfinite(float(torch.maximum(high, -low))):
            raise TensorError(
                f"{name} in {self.tensors[name].path} holds NaN or Inf; the checkpoint is damaged, or was "
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
            digest.update(_sample(self.provider, shard))
        return digest.hexdigest()


def _sample(provider: ShardProvider, shard: Shard) -> bytes:
    """Return some bytes of a shard's data, from places that only its size decides."""
    last = max(0, shard.num_bytes - SAMPLE_BYTES)
    starts = [last * number // (NUM_SAMPLES - 1) for number in range(NUM_SAMPLES)]
    return b"".join(provider.read_ranges(shard, starts, SAMPLE_BYTES))
