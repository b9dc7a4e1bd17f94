"""One way to read weights by name, from a source checkpoint or from a W4A16 release."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moe4.checkpoint.header import TensorSpec
from moe4.checkpoint.index import CheckpointIndex, read_config
from moe4.checkpoint.packed import dequantize, unpack
from moe4.checkpoint.shard import StoredTensor, iterate_rows, read_tensor
from moe4.checkpoint.source import Checkpoint
from moe4.checkpoint.source_formats import FLOAT_DTYPES
from moe4.config import ModelConfig
from moe4.errors import CheckpointError, TensorError
from moe4.model.accounting import Accounting
from moe4.model.architecture import Network


class Weights(Protocol):
    """A model's config and its weights by their unquantized names."""

    config: ModelConfig

    def load(self, name: str) -> Tensor:
        """Return a weight; float32 [out, in] where it was stored in FP8 or INT4."""
        ...

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix [rows, columns], some whole rows at a time, as `load` gives it."""
        ...


class ReleaseWeights:
    """A W4A16 release. Raises CheckpointError's children."""

    def __init__(self, folder: Path) -> None:
        index = CheckpointIndex(folder)
        self.folder, self.config, self._stored = folder, index.config, index.tensors

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor by its unquantized name; BF16 stands for the dtype of those that are quantized."""
        found = {name: stored.spec for name, stored in self._stored.items()}
        for name, spec in list(found.items()):
            if name.endswith(".weight_packed") and len(spec.shape) == 2:
                plain, (rows, words) = name.removesuffix("_packed"), spec.shape
                found[plain] = TensorSpec(name=plain, dtype="BF16", shape=(rows, 8 * words))
        return found

    def load(self, name: str) -> Tensor:
        """Return a weight; float32 where it is quantized, every product exact."""
        base = name.removesuffix("weight")
        if f"{base}weight_packed" in self._stored:
            packed, scales = (self._plain(f"{base}weight_{leaf}") for leaf in ("packed", "scale"))
            _check_quantized(packed, scales)
            return dequantize(unpack(read_tensor(packed)), read_tensor(scales))
        return read_tensor(self._plain(name))

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix that is not quantized, some whole rows at a time."""
        yield from iterate_rows(self._plain(name))

    def _plain(self, name: str) -> StoredTensor:
        if name not in self._stored:
            raise CheckpointError(f"{self.folder} has no {name}, which its architecture needs")
        return self._stored[name]


def _check_quantized(packed: StoredTensor, scales: StoredTensor) -> None:
    """Raise TensorError unless codes and scales fit each other."""
    words, groups = packed.spec, scales.spec
    fits = (words.dtype, groups.dtype in FLOAT_DTYPES) == ("I32", True)
    if fits and len(words.shape) == len(groups.shape) == 2 and words.shape[0] == groups.shape[0]:
        num_codes, num_groups = 8 * words.shape[1], groups.shape[1]
        if num_groups and num_codes % num_groups == 0:
            return
    raise TensorError(
        f"{packed.path}: {groups.name} ({groups.dtype} {list(groups.shape)}) does not fit "
        f"{words.name} ({words.dtype} {list(words.shape)})"
    )


def gather_rows(weights: Weights, name: str, numbers: Tensor) -> Tensor:
    """Return some rows of a matrix, [numbers, columns] as `load` gives it, without holding all of it."""
    ordered, by_row = torch.sort(numbers, stable=True)
    found: list[Tensor] = []
    first = 0
    for rows in weights.iterate_rows(name):
        begin, end = torch.searchsorted(ordered, torch.tensor([first, first + len(rows)])).tolist()
        found.append(rows[ordered[begin:end] - first])
        first += len(rows)
    joined = torch.cat(found)
    return torch.empty_like(joined).index_copy_(0, by_row, joined)


def open_model(folder: Path, compute_dtype: torch.dtype) -> tuple[Weights, Network]:
    """Open a release or a plain checkpoint with its network, once it is seen to hold every tensor of it.

    Raises CheckpointError's children.
    """
    weights = open_weights(folder)
    network = Network(weights.config, compute_dtype)
    for problem in Accounting(network, weights.config).check(weights.specs, {}).problems:
        raise problem
    return weights, network


def open_weights(folder: Path) -> Checkpoint | ReleaseWeights:
    """Open a release or a plain checkpoint, as its config says. Raises CheckpointError's children."""
    quantization = read_config(folder).quantization
    return ReleaseWeights(folder) if quantization and quantization.is_packed else Checkpoint(folder)
