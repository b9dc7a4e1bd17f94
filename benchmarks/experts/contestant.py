"""What the benchmark needs to know of an engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from experts.layer import Call

# A gross mistake in the weights or scales gives about 1; a scale of the wrong group, 0.3 and more.
EXACT_ACTIVATIONS = 0.02  # several roundings to bfloat16 make 0.002 to 0.01
INT8_ACTIVATIONS = 0.06  # rounding the activations of both products to eight bits makes 0.01 to 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """An engine with its own copy of a layer's weights."""

    name: str
    run: Callable[[Call], tuple[float, Tensor]]  # returns the seconds it took, and the result
    note: str  # what it holds and what it rounds
    max_error: float  # relative to float64's norm; above it, the engine is wrong
    scale_dtype: torch.dtype = torch.bfloat16  # of its weights, for the float64 result it is held to


@cache
def other_data() -> Tensor:
    return torch.ones(2**23, dtype=torch.int64)  # 64 MB


def settle() -> None:
    """Give every contestant the same start: no other's threads spin, caches are full of something else."""
    time.sleep(0.02)
    other_data().sum()
