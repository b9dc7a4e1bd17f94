"""Experts and linear layers in INT4 (W4A16) on CPUs, over the checkpoint's own bytes; also in int8."""

from moe4.kernels.linear import has_int4_linear, has_int8_linear, int4_linear, int8_linear
from moe4.kernels.op import available_paths, fused_experts, selected_path
from moe4.kernels.reference import fused_experts_reference

__all__ = [
    "available_paths",
    "fused_experts",
    "fused_experts_reference",
    "has_int4_linear",
    "has_int8_linear",
    "int4_linear",
    "int8_linear",
    "selected_path",
]
