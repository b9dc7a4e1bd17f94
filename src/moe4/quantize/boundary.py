"""The hidden states between two layers, kept on disk so that a killed run need not go back further.

`OUT/.moe4/hidden-NNNNN.bin` is layer N's input [tokens, hidden] in the compute dtype. Its SHA-256 stands in
the journal. The input of the layer before is kept too, so that a damaged file can be made again.
"""

import time
from pathlib import Path

import torch

from moe4.calibration.activations import ActivationStore
from moe4.calibration.corpus import Corpus
from moe4.checkpoint.durable import file_sha256, publish
from moe4.checkpoint.journal import Journal, is_unchanged
from moe4.checkpoint.source import Checkpoint
from moe4.errors import RankError, ResumeError
from moe4.model.architecture import Network

ROWS_AT_ONCE = 1024
WAIT_SECONDS = 120.0  # for a file of rank 0's to be seen through a network file system


class Boundary:
    """The inputs of layers, as files in a run's work folder."""

    def __init__(self, work: Path, checkpoint: Checkpoint, network: Network, corpus: Corpus) -> None:
        self._work, self._checkpoint, self._network, self._corpus = work, checkpoint, network, corpus
        self._shape = (corpus.num_tokens, int(network.config.hidden_size))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each calibration sequence."""
        return [len(sequence) for sequence in self._corpus.sequences]

    def path(self, layer: int) -> Path:
        """Return where a layer's input lies."""
        return self._work / f"hidden-{layer:05d}.bin"

    def embed(self) -> None:
        """Write the first layer's input, the tokens' embeddings."""
        store = ActivationStore(self.path(0), self._shape, self._network.compute_dtype, create=True)
        tokens = torch.tensor([token for sequence in self._corpus.sequences for token in sequence])
        by_token = torch.argsort(tokens, stable=True)
        ordered, first = tokens[by_token], 0
        for embeddings in self._checkpoint.iterate_rows(self._network.embedding_name):
            bounds = torch.searchsorted(ordered, torch.tensor([first, first + len(embeddings)]))
            for rows in torch.split(by_token[bounds[0] : bounds[1]], ROWS_AT_ONCE):
                store.write(rows, embeddings[tokens[rows] - first])
            first += len(embeddings)
        store.sync()

    def store(self, layer: int, total: ActivationStore) -> str:
        """Write a layer's input, durably; return its SHA-256."""
        temporary = self.path(layer).with_suffix(".partial")
        store = ActivationStore(temporary, self._shape, self._network.compute_dtype, create=True)
        for rows in total.pieces():
            store.write(rows, total.read(rows))
        store.sync()
        publish(temporary, self.path(layer))
        return file_sha256(self.path(layer))

    def open(self, layer: int) -> ActivationStore:
        """Map a layer's input."""
        return open_shared(self.path(layer), self._shape, self._network.compute_dtype)

    def repair(self, journal: Journal) -> str | None:
        """Check the next layer's input by its SHA-256; if it is damaged, have the layer before done again.

        Returns what was found, or None if all is well. Raises ResumeError if there is nothing to begin from.
        """
        layer = len(journal.shards)
        if layer == 0 or layer >= self._network.num_layers or self._is_whole(layer, journal):
            return None
        path = self.path(layer)
        if layer > 1 and not self._is_whole(layer - 1, journal):
            raise ResumeError(
                f"{path} and {self.path(layer - 1).name} are missing or damaged; "
                "begin again in an empty folder"
            )
        state = "damaged" if path.is_file() else "missing"
        path.unlink(missing_ok=True)
        journal.forget_last()
        return f"{path} is {state}: layer {layer}, which makes it, is done again"

    def _is_whole(self, layer: int, journal: Journal) -> bool:
        path = self.path(layer)
        return is_unchanged(path, journal.shards[layer - 1].kept.get(path.name))


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
