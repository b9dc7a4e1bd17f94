"""The hidden states between two layers, kept on disk so that a killed run need not go back further.

`OUT/.moe4/hidden-NNNNN.bin` is layer N's input [tokens, hidden] in the compute dtype. Its SHA-256 stands in
the journal. The input of the layer before is kept too, so that a damaged file can be made again. Where a
layer's output lies on a GPU the next layer takes it from there, and the file is written behind its back.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from moe4.calibration.activations import TRAFFIC, Activations, ActivationStore, ResidentActivations
from moe4.calibration.corpus import Corpus
from moe4.checkpoint.journal import Journal, is_unchanged
from moe4.checkpoint.shard import tensor_bytes
from moe4.checkpoint.source import Checkpoint
from moe4.errors import RankError, ResumeError
from moe4.files.durable import create_file, file_sha256, publish
from moe4.model.architecture import Network
from moe4.quantize.transfer.device_memory import has_room, make_activations, to_device, to_host
from moe4.quantize.transfer.ranks import Parcel, Ranks

ROWS_AT_ONCE = 1024
PIECE_BYTES = 64 << 20
WAIT_SECONDS = 120.0  # for a file of rank 0's to be seen through a network file system


class LayerInputs(Protocol):
    """What has a file for each layer's input."""

    def path(self, layer: int) -> Path:
        """Return where a layer's input lies."""
        ...

    @property
    def most_bytes(self) -> int:
        """How many bytes such a file has at most."""
        ...


class Boundary:
    """The inputs of layers: files in a run's work folder, and the one at hand on a GPU that has room."""

    def __init__(
        self,
        work: Path,
        checkpoint: Checkpoint,
        network: Network,
        corpus: Corpus,
        device: torch.device,
    ) -> None:
        self._work, self._checkpoint, self._network, self._corpus = work, checkpoint, network, corpus
        self._device = device
        self._shape = (corpus.num_tokens, network.state_width)
        self._resident: dict[int, ResidentActivations] = {}

    @property
    def most_bytes(self) -> int:
        """How many bytes a layer's input has."""
        return self._shape[0] * self._shape[1] * self._network.compute_dtype.itemsize

    @property
    def sequences(self) -> list[list[int]]:
        """The token ids of calibration."""
        return self._corpus.sequences

    @property
    def num_tokens(self) -> int:
        """The tokens of calibration."""
        return self._corpus.num_tokens

    def path(self, layer: int) -> Path:
        """Return where a layer's input lies."""
        return self._work / f"hidden-{layer:05d}.bin"

    def embed(self) -> None:
        """Make the first layer's input, the tokens' embeddings."""
        store = make_activations(self.path(0), self._shape, self._network.compute_dtype, self._device)
        place = self._device if isinstance(store, ResidentActivations) else torch.device("cpu")
        tokens = torch.tensor(
            [token for sequence in self._corpus.sequences for token in sequence], dtype=torch.int64
        )
        by_token = torch.argsort(tokens, stable=True)
        ordered, first = tokens[by_token], 0
        for embeddings in self._checkpoint.iterate_rows(self._network.embedding_name):
            bounds = torch.searchsorted(
                ordered, torch.tensor([first, first + len(embeddings)], dtype=torch.int64)
            )
            there = to_device(embeddings, place) if bounds[0] < bounds[1] else embeddings
            for rows in torch.split(by_token[bounds[0] : bounds[1]], ROWS_AT_ONCE):
                store.write(rows, self._network.begin(there[(tokens[rows] - first).to(place)]))
            first += len(embeddings)
        if isinstance(store, ResidentActivations):
            self._resident[0] = store
        elif isinstance(store, ActivationStore):
            store.sync()

    def advance(self, layer: int, total: Activations) -> Callable[[], str]:
        """Make a layer's input of the output before it; return what makes it durable and gives its SHA-256.

        That may be called from another thread while the layer is run, if `is_resident` says so of it;
        otherwise before the layer is opened.
        """
        if isinstance(total, ResidentActivations):
            values = total.values.to(self._network.compute_dtype)
            if values.is_cuda:
                torch.cuda.current_stream(values.device).synchronize()
            resident = self._resident[layer] = ResidentActivations(values)
            return lambda: self._write(layer, resident)
        return lambda: self._store(layer, total)

    def is_resident(self, layer: int) -> bool:
        """Say whether a layer's input lies on the device, so that its file may come later."""
        return layer in self._resident

    def open(self, layer: int, ranks: Ranks) -> Activations:
        """Return a layer's input, which only this layer reads, on every rank; rank 0 has made it.

        All ranks call this. Where rank 0 has it on its GPU the others have it on theirs.
        """
        resident = self._resident.pop(layer, None)
        if resident is None and ranks.is_first:
            resident = self._load(layer)
        tensors = {} if resident is None else {"hidden": resident.values}
        shared = ranks.share(Parcel(tensors=tensors)).tensors
        if "hidden" in shared:
            return ResidentActivations(shared["hidden"])
        return open_shared(self.path(layer), self._shape, self._network.compute_dtype)

    def _load(self, layer: int) -> ResidentActivations | None:
        """Bring a layer's input from its file to the device if there is room, as after `--resume`."""
        dtype = self._network.compute_dtype
        if not has_room(self.most_bytes, self._device):
            return None
        stored = open_shared(self.path(layer), self._shape, dtype)
        values = torch.empty(self._shape, dtype=dtype, device=self._device)
        for rows in stored.pieces():
            values[rows] = to_device(stored.read(rows), self._device)
        return ResidentActivations(values)

    def _store(self, layer: int, total: Activations) -> str:
        """Write a layer's input from a file; return its SHA-256."""
        temporary = self.path(layer).with_suffix(".partial")
        store = ActivationStore(temporary, self._shape, self._network.compute_dtype, create=True)
        for rows in store.pieces():
            store.write(rows, total.read(rows))
        store.sync()
        publish(temporary, self.path(layer))
        return file_sha256(self.path(layer))

    def _write(self, layer: int, resident: ResidentActivations) -> str:
        """Write a layer's input from the device; return its SHA-256. Memory: a piece, pinned."""
        temporary, digest = self.path(layer).with_suffix(".partial"), hashlib.sha256()
        device = resident.values.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with os.fdopen(create_file(temporary), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, resident.values.nbytes)
            for rows in resident.pieces(PIECE_BYTES):
                with torch.cuda.stream(stream):
                    piece = to_host(resident.values[rows])
                if stream is not None:
                    stream.synchronize()
                data = tensor_bytes(piece)
                file.write(data)
                digest.update(data)
                TRAFFIC.bytes_written += piece.nbytes
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, self.path(layer))
        return digest.hexdigest()


def repair(journal: Journal, num_layers: int, inputs: Sequence[LayerInputs]) -> str | None:
    """Check the next layer's inputs by their SHA-256; if one is damaged, have the layer before done again.

    Returns what was found, or None if all is well. Raises ResumeError if there is nothing to begin from.
    """
    layer = len(journal.shards)
    if layer == 0 or layer >= num_layers:
        return None
    path = next((item.path(layer) for item in inputs if not _is_whole(item, layer, journal)), None)
    if path is None:
        return None
    for item in inputs:
        if layer > 1 and not _is_whole(item, layer - 1, journal):
            raise ResumeError(
                f"{path} and {item.path(layer - 1).name} are missing or damaged; "
                "begin again in an empty folder"
            )
    state = "damaged" if path.is_file() else "missing"
    path.unlink(missing_ok=True)
    journal.forget_last()
    return f"{path} is {state}: layer {layer}, which makes it, is done again"


def _is_whole(item: LayerInputs, layer: int, journal: Journal) -> bool:
    path = item.path(layer)
    return is_unchanged(path, journal.shards[layer - 1].kept.get(path.name), item.most_bytes)


def open_shared(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> ActivationStore:
    """Map a file of activations that rank 0 has written, perhaps on another machine.

    Raises RankError if it does not come in sight.
    """
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.is_file() or path.stat().st_size != num_bytes:
        if time.monotonic() > deadline:
            raise RankError(
                f"{path} is not here as rank 0 wrote it; OUT must be on a file system that all ranks share"
            )
        time.sleep(0.1)
    return ActivationStore(path, shape, dtype, create=False)
