"""The INT4 (W4A16) expert forward for CPUs, on the checkpoint's own bytes, and a linear layer in int8."""

from moe4.kernels.linear import has_int8_linear, int8_linear
from moe4.kernels.op import available_paths, fused_experts, selected_path
from moe4.kernels.reference import fused_experts_reference

__all__ = [
    "available_paths",
    "fused_experts",
    "fused_experts_reference",
    "has_int8_linear",
    "int8_linear",
    "selected_path",
]
