"""What this machine offers the kernels: instructions, threads, memory; and the path that is taken."""

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe4.environment import Variable, is_set
from moe4.errors import KernelError
from moe4.kernels import _experts
from moe4.kernels.op import ON_REQUEST, PATHS, num_threads_or_default, selected_path
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
    """What a machine offers the kernels. Sizes in bytes; cpus are those this process may use."""

    architecture: str
    processor: str
    cpus: int
    numa_nodes: int
    memory_bytes: int
    threads: int
    thread_runtime: str
    paths: tuple[PathState, ...]
    selected: str
    reason: str


def inspect_machine() -> Machine:
    """Look at this machine. Raises KernelError if MOE4_KERNEL names a path it cannot run."""
    fields = read_cpuinfo()
    return Machine(
        architecture=platform.machine(),
        processor=fields.get("model name") or platform.processor() or "unknown",
        cpus=num_usable(),
        numa_nodes=max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        memory_bytes=total_memory_bytes(),
        threads=torch.get_num_threads(),
        thread_runtime=_experts.thread_runtime(),
        paths=_path_states(set(read_flags(fields))),
        selected=selected_path(),
        reason=f"{Variable.KERNEL} names it"
        if is_set(Variable.KERNEL)
        else "the fastest that this processor can run",
    )


def read_tensors(tensors: Iterable[Tensor], *, num_threads: int | None = None) -> int:
    """Read tensors of the CPU's memory and do nothing else; return the exclusive or of their 64-bit words.

    tensors: contiguous; bytes after the last whole word of one are left out.
    num_threads: None means torch.get_num_threads().

    Raises KernelError if a tensor is not contiguous memory of the CPU.
    """
    spans = []
    for number, tensor in enumerate(tensors):
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise KernelError(
                f"tensors[{number}]: expected contiguous memory of the CPU, found strides {tensor.stride()} "
                f"on {tensor.device}"
            )
        spans.append((tensor.data_ptr(), tensor.nbytes))
    return _experts.read_tensors(
        addresses=[address for address, _ in spans],
        sizes=[size for _, size in spans],
        num_threads=num_threads_or_default(num_threads),
    )


def measure_read_rate() -> float:
    """Return the best rate, in bytes a second, of reading 512 MiB with torch's threads. Takes a second."""
    data = torch.ones(2**27)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        read_tensors([data])
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)


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
