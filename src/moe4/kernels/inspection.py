"""What this machine offers the kernels: instructions, threads, memory; and the path that is taken.

It does without torch, so that `moe4 doctor` runs in the core.
"""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe4 import extras
from moe4.environment import Variable, is_set
from moe4.kernels import _experts
from moe4.kernels.paths import ON_REQUEST, PATHS, selected_path
from moe4.machine.memory import total_memory_bytes
from moe4.machine.processors import num_usable, read_cpuinfo, read_flags

# What each path needs, in the order of available_paths(), in the words of /proc/cpuinfo.
AVX512 = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl")
X86_NEEDS = {
    "amx_int16": (*AVX512, "avx512_vnni", "amx_tile", "amx_int8"),
    "avx512_int16": (*AVX512, "avx512_vnni"),
    "avxvnni_int16": ("avx2", "fma", "avx_vnni"),
    "avx2_int16": ("avx2", "fma"),
    "avx512_bf16": (*AVX512, "avx512_bf16"),
    "avx512": AVX512,
    "avx2": ("avx2", "fma"),
    "portable": (),
    "avx512_vnni": (*AVX512, "avx512_vnni"),
}
ARM_NEEDS: dict[str, tuple[str, ...]] = {
    "neon_int16": ("asimddp",),
    "neon_bf16": ("bf16",),
    "neon": (),
    "portable": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PathState:
    """A kernel path.

    obstacle: why this machine cannot run it; None if it can.
    on_request: why it is never taken unless it is named; None if it is.
    """

    name: str
    obstacle: str | None
    on_request: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a machine offers the kernels. Sizes in bytes; cpus are those this process may use.

    threads: how many PyTorch computes with; None without PyTorch.
    thread_runtime: the OpenMP library that the kernels' threads are of, else std::thread.
    """

    architecture: str
    processor: str
    cpus: int
    numa_nodes: int
    memory_bytes: int
    threads: int | None
    thread_runtime: str
    paths: tuple[PathState, ...]
    selected: str
    reason: str


def inspect_machine() -> Machine:
    """Look at this machine. Raises KernelError if MOE4_KERNEL names a path it cannot run."""
    fields = read_cpuinfo()
    # Before thread_runtime(), which looks for the library that torch has loaded.
    threads = _num_torch_threads()
    return Machine(
        architecture=platform.machine(),
        processor=fields.get("model name") or platform.processor() or "unknown",
        cpus=num_usable(),
        numa_nodes=max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        memory_bytes=total_memory_bytes(),
        threads=threads,
        thread_runtime=_experts.thread_runtime(),
        paths=_path_states(set(read_flags(fields))),
        selected=selected_path(),
        reason=f"{Variable.KERNEL} names it"
        if is_set(Variable.KERNEL)
        else "the fastest that this processor can run",
    )


def measure_read_rate() -> float:
    """Return the best rate, in bytes a second, of reading 512 MiB. Takes a second.

    It reads with as many threads as PyTorch would take, or one a processor where PyTorch is not installed.
    """
    data = np.ones(2**26)
    num_threads = _num_torch_threads() or num_usable()
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        _experts.read_tensors(addresses=[data.ctypes.data], sizes=[data.nbytes], num_threads=num_threads)
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)


def _num_torch_threads() -> int | None:
    if not extras.is_installed("torch"):
        return None
    import torch

    return torch.get_num_threads()


def _path_states(features: set[str]) -> tuple[PathState, ...]:
    needs = ARM_NEEDS if platform.machine() in ("aarch64", "arm64") else X86_NEEDS
    states = []
    for name in (*needs, *(path for path in PATHS if path not in needs)):
        obstacle = None
        if name not in PATHS:
            missing = [feature for feature in needs[name] if feature not in features]
            obstacle = f"the processor lacks {', '.join(missing)}" if missing else "not compiled in"
        states.append(PathState(name=name, obstacle=obstacle, on_request=ON_REQUEST.get(name)))
    return tuple(states)
