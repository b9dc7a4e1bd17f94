"""What decides the bytes of a release beside its source, recipe and calibration data.

A run's journal and its report hold it. A run is resumed only where it is the same: half a release from one
kind of processor and half from another is neither's. The number of processes is not in it, for it changes
nothing (`transfer/ranks.py`).
"""

import os
import platform
from importlib.metadata import version

import torch

from moe4.fingerprint import RunEnvironment
from moe4.gptq.columns import selected_path
from moe4.gptq.products import product_dtype
from moe4.machine.processors import read_cpuinfo, read_flags

# Of what the CPU can do, beside torch's own classes, the instructions that libraries take for products.
PRODUCT_FLAGS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "bf16", "i8mm", "sve")
# Variables by which libraries round products differently.
LIBRARY_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TRITON_INTERPRET",
)


def find_environment(device: torch.device) -> RunEnvironment:
    """Look at this process and its machine. Raises KernelError for a variable with no such choice."""
    on_cpu = device.type == "cpu"
    example = torch.zeros(1, dtype=torch.float32)
    return RunEnvironment(
        device="cpu" if on_cpu else torch.cuda.get_device_name(device),
        processor=_describe_processor() if on_cpu else None,
        products=str(product_dtype(example)).removeprefix("torch.") if on_cpu else None,
        columns=selected_path(example) if on_cpu else None,
        torch=version("torch"),
        transformers=version("transformers"),
        variables={name: os.environ[name] for name in LIBRARY_VARIABLES if os.environ.get(name)},
        threads=None,
    )


def _describe_processor() -> str:
    fields = read_cpuinfo()
    flags = read_flags(fields)
    maker = fields.get("vendor_id") or platform.machine()
    words = [
        maker,
        torch.backends.cpu.get_cpu_capability(),
        *(flag for flag in PRODUCT_FLAGS if flag in flags),
    ]
    return " ".join(words)
