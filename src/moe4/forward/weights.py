"""One way to read weights by name, from a source checkpoint or from a W4A16 release."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize, unpack
from moe4.checkpoint.shard import StoredTensor, iterate_rows, read_shard, read_tensor
from moe4.checkpoint.source import CONFIG_NAME, INDEX_NAME, Checkpoint, read_json_object
from moe4.config import ModelConfig, parse_config
from moe4.errors import CheckpointError, MissingFileError, UnsafePathError


class Weights(Protocol):
    """A model's config and its weights by their unquantized names."""

    config: ModelConfig

    def load(self, name: str) -> Tensor:
        """Return a weight; float32 [out, in] where it was stored in FP8 or INT4."""
        ...

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix [rows, columns], some whole rows at a time, as `load` gives it."""
        ...


class Release:
    """A W4A16 release. Raises CheckpointError's children."""

    def __init__(self, folder: Path) -> None:
        if not (folder / CONFIG_NAME).is_file() or not (folder / INDEX_NAME).is_file():
            raise MissingFileError(f"{folder} is no release: it has no {CONFIG_NAME} or no {INDEX_NAME}")
        self.folder = folder
        self.config = parse_config(read_json_object(folder / CONFIG_NAME), folder / CONFIG_NAME)
        weight_map = read_json_object(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map")
        shards = {}
        for shard_name in sorted(set(map(str, weight_map.values()))):
            if Path(shard_name).name != shard_name:
                raise UnsafePathError(f"{INDEX_NAME} names {shard_name}, which is not a file in the folder")
            shards[shard_name] = read_shard(folder / shard_name).tensors
        self._stored: dict[str, StoredTensor] = {}
        for name, shard_name in weight_map.items():
            if name not in shards[shard_name]:
                raise CheckpointError(f"{folder / INDEX_NAME} says {shard_name} holds {name}; it does not")
            self._stored[name] = shards[shard_name][name]

    def load(self, name: str) -> Tensor:
        """Return a weight; float32 where it is quantized, every product exact."""
        base = name.removesuffix("weight")
        if f"{base}weight_packed" in self._stored:
            packed, scales = (
                read_tensor(self._stored[f"{base}weight_{leaf}"]) for leaf in ("packed", "scale")
            )
            return dequantize(unpack(packed), scales)
        return read_tensor(self._plain(name))

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix that is not quantized, some whole rows at a time."""
        yield from iterate_rows(self._plain(name))

    def _plain(self, name: str) -> StoredTensor:
        if name not in self._stored:
            raise CheckpointError(f"{self.folder} has no {name}, which its architecture needs")
        return self._stored[name]


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


def open_weights(folder: Path) -> Weights:
    """Open a release or a plain checkpoint, as its config says. Raises CheckpointError's children."""
    if not (folder / CONFIG_NAME).is_file():
        raise MissingFileError(f"{folder} is no checkpoint or release: it has no {CONFIG_NAME}")
    quantization = parse_config(read_json_object(folder / CONFIG_NAME), folder / CONFIG_NAME).quantization
    return Release(folder) if quantization and quantization.is_packed else Checkpoint(folder)
