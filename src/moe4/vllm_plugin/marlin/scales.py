"""A correction of vLLM on GPUs: the order of gate's and up's scales for the Marlin expert kernel.

Marlin wants the scales of a matrix that has several groups along its input, K, in one order, and those of a
matrix with a single group in another. `marlin_moe_permute_scales` chooses by `size_k <= group_size`.
In vLLM 0.26 to 0.33, `_process_weights_marlin` (`fused_moe/oracle/int_wna16.py`) passes the experts' inner
width on the rank as the `size_k` of gate and up, where K is the hidden size. Where that width is one group or
less, their many groups get the order of a single one. docs/vllm-marlin-scales.md has the whole story.
"""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor

MODULE = "vllm.model_executor.layers.fused_moe.oracle.int_wna16"
FUNCTION = "marlin_moe_permute_scales"
REPORT = "https://github.com/vllm-project/vllm/pull/50196"

_logger = logging.getLogger("vllm.plugins.moe4")
_has_said = False


class NotAttachedError(Exception):
    """vLLM has no place where the correction could go."""


def attach() -> None:
    """Put the correction between vLLM's weight processing and its permutation. Raises NotAttachedError.

    It changes what vLLM computes only where `correct` finds a wrong order; a right vLLM stays as it is.
    """
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        raise NotAttachedError(str(error)) from None
    permute = getattr(module, FUNCTION, None)
    if permute is None or not _is_called_in(module):
        raise NotAttachedError(f"nothing in {MODULE} calls {FUNCTION}")
    unknown = {"s", "size_k", "group_size"} - set(inspect.signature(permute).parameters)
    if unknown:
        raise NotAttachedError(f"{FUNCTION} takes no {' or '.join(sorted(unknown))}")
    if not hasattr(permute, "__wrapped__"):
        setattr(module, FUNCTION, correct(permute))


def correct(permute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return vLLM's `permute` with K taken from the scales where the K it is given leads to another order.

    `permute(s, size_k, size_n, group_size, ...)` reorders s [experts, K / group_size, N]. The right order is
    vLLM's own, for the right K.
    """
    signature = inspect.signature(permute)

    @functools.wraps(permute)
    def permuted(*values: Any, **named: Any) -> Tensor:
        result = permute(*values, **named)
        call = signature.bind(*values, **named).arguments
        size_k, group_size = call["size_k"], call["group_size"]
        true_k = call["s"].shape[1] * group_size
        if group_size <= 0 or (size_k <= group_size) == (true_k <= group_size):
            return result
        right = permute(**{**call, "size_k": true_k})
        if torch.equal(result.view(torch.uint8), right.view(torch.uint8)):
            return result
        _say_once(
            "moe4 corrects vLLM's order of the experts' scales for Marlin: vLLM took K = %d where it is %d, "
            "in groups of %d (%s)",
            size_k,
            true_k,
            group_size,
            REPORT,
        )
        return right

    return permuted


def _is_called_in(module: ModuleType) -> bool:
    """Say whether a function of the module calls the permutation by the name that `attach` replaces."""
    codes = (getattr(value, "__code__", None) for value in vars(module).values())
    return any(isinstance(code, CodeType) and FUNCTION in code.co_names for code in codes)


def _say_once(message: str, *values: object) -> None:
    """Write one line for a process, not one for each layer."""
    global _has_said
    if not _has_said:
        _has_said = True
        _logger.info(message, *values)
