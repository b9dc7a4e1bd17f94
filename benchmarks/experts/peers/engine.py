"""What a module of an engine offers: variants, each built from a layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from experts.contestant import INT8_ACTIVATIONS
from experts.layer import Call, Layer

Run = Callable[[Call], tuple[float, Tensor]]


class AbsentError(Exception):
    """The engine, or a variant of it, is not to be had here; says why."""


class BrokenError(Exception):
    """The engine is here and did not come to a result; says how it ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What an engine is to be built for."""

    environment: Path  # that `setup_peers.py` made
    num_threads: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to use an engine."""

    build: Callable[[Layer, Setting], Run]  # in the worker; raises AbsentError
    note: str
    max_error: float = INT8_ACTIVATIONS
    scale_dtype: torch.dtype = torch.bfloat16
    variables: Mapping[str, str] = field(default_factory=dict)  # of the worker's environment
