"""One way to read weights by name, from a source checkpoint or from a W4A16 release."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moe4.checkpoint.source import Checkpoint
from moe4.config import ModelConfig
from moe4.model.accounting import Accounting
from moe4.model.architecture import Network
from moe4.model.fused import take_experts_apart


class Weights(Protocol):
    """A model's config and its weights by their unquantized names."""

    config: ModelConfig

    def load(self, name: str) -> Tensor:
        """Return a weight; float32 [out, in] where it was stored in FP8 or INT4."""
        ...

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix [rows, columns], some whole rows at a time, as `load` gives it."""
        ...


def gather_rows(weights: Weights, name: str, numbers: Tensor) -> Tensor:
    """Return some rows of a matrix, [numbers, columns] as `load` gives it, without holding all of it."""
    ordered, by_row = torch.sort(numbers, stable=True)
    found: list[Tensor] = []
    first = 0
    for rows in weights.iterate_rows(name):
        begin, end = torch.searchsorted(
            ordered, torch.tensor([first, first + len(rows)], dtype=torch.int64)
        ).tolist()
        found.append(rows[ordered[begin:end] - first])
        first += len(rows)
    joined = torch.cat(found)
    return torch.empty_like(joined).index_copy_(0, by_row, joined)


def open_model(
    folder: Path, compute_dtype: torch.dtype, *, family_as_is: bool = False
) -> tuple[Checkpoint, Network]:
    """Open a release or a plain checkpoint with its network, once it is seen to hold every tensor of it.

    family_as_is: whether its family need not be a listed one. Raises CheckpointError's children.
    """
    weights = Checkpoint(folder, family_as_is=family_as_is)
    network = Network(weights.config, compute_dtype, weights.specs)
    take_experts_apart(weights, network)
    for problem in Accounting(network, weights.config).check(weights.specs, {}).problems:
        raise problem
    return weights, network
