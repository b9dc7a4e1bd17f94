"""The environment variables that choose between moe4's own ways to compute: all are read here.

Those that change the bytes of a release are recorded with it (`quantize/run/environment.py`).
"""

import os
from collections.abc import Sequence
from enum import StrEnum

from moe4.errors import KernelError


class Variable(StrEnum):
    """A variable, and what it chooses."""

    KERNEL = "MOE4_KERNEL"
    """The path of the expert operator that serves a release."""
    PRODUCTS = "MOE4_PRODUCTS"
    """bf16 or float32: the operands of GPTQ's large products on a CPU. Changes bytes."""
    COLUMNS = "MOE4_COLUMNS"
    """The path of GPTQ's loops over columns on a CPU. Changes bytes."""


def chosen(variable: Variable, choices: Sequence[str], default: str) -> str:
    """Return what a variable names, or the default. Raises KernelError unless it is one of `choices`."""
    name = os.environ.get(variable) or default
    if name not in choices:
        raise KernelError(f"{variable}: expected one of {', '.join(choices)} on this machine, found {name!r}")
    return name


def is_set(variable: Variable) -> bool:
    """Say whether a variable makes the choice."""
    return bool(os.environ.get(variable))
