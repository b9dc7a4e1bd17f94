"""What brings a layer's experts into memory before the kernel reads them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moe4.checkpoint.mapping import read_ahead

Ranges = Sequence[tuple[int, int]]


class Supply(Protocol):
    """One layer's experts, wherever they come from."""

    def split(self, topk_ids: Tensor) -> list[Tensor]:
        """Return the ids in parts whose experts can be in memory at the same time, -1 for the others'."""

    def fetch(self, topk_ids: Tensor) -> Tensor:
        """Return a table in which these experts' addresses hold until the next call of any layer's."""


class ReadAhead:
    """Experts mapped from shards; those just routed are asked for all at once, before they are read.

    With `once`, each expert is asked for the first time only: memory has room for all of them.
    """

    def __init__(self, table: Tensor, ranges: Sequence[Ranges], step_bytes: int, *, once: bool) -> None:
        """`ranges` has, for each expert of the table, the (address, bytes) of its parts."""
        self._table = table
        self._ranges = ranges
        self._step_bytes = step_bytes
        self._once = once
        self._asked = np.zeros(len(ranges), dtype=bool)
        self._num_left = len(ranges)

    def split(self, topk_ids: Tensor) -> list[Tensor]:
        """Return all ids: the system makes room for whatever is read."""
        return [topk_ids]

    def fetch(self, topk_ids: Tensor) -> Tensor:
        """Start reading the experts that are not asked for yet."""
        if self._num_left:
            for expert in chosen_experts(topk_ids):
                if not self._asked[expert]:
                    read_ahead(self._ranges[expert], self._step_bytes)
                    if self._once:
                        self._asked[expert] = True
                        self._num_left -= 1
        return self._table


def chosen_experts(topk_ids: Tensor) -> list[int]:
    """Return the experts named by ids, each once, ascending."""
    experts: list[int] = torch.unique(topk_ids).tolist()
    return [expert for expert in experts if expert >= 0]
