"""Experts and linear layers in INT4 (W4A16) on CPUs, over the checkpoint's own bytes; also in int8.

Each name is imported when it is first used: `inspection` and `paths` do without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe4.kernels.linear import has_int4_linear as has_int4_linear
    from moe4.kernels.linear import has_int8_linear as has_int8_linear
    from moe4.kernels.linear import int4_linear as int4_linear
    from moe4.kernels.linear import int8_linear as int8_linear
    from moe4.kernels.op import fused_experts as fused_experts
    from moe4.kernels.paths import available_paths as available_paths
    from moe4.kernels.paths import selected_path as selected_path
    from moe4.kernels.reference import fused_experts_reference as fused_experts_reference

# Public name -> the module it is in.
_PLACES = {
    "available_paths": "paths",
    "fused_experts": "op",
    "fused_experts_reference": "reference",
    "has_int4_linear": "linear",
    "has_int8_linear": "linear",
    "int4_linear": "linear",
    "int8_linear": "linear",
    "selected_path": "paths",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'moe4.kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(f"moe4.kernels.{place}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
