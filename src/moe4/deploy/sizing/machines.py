"""GPUs and servers a release may be put on, by what decides: memory and its bandwidth."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from moe4.arguments import argument
from moe4.errors import DeployError
from moe4.machine.gpus import Gpu, list_gpus
from moe4.machine.memory import total_memory_bytes
from moe4.units import GIB

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One GPU, or one CPU server.

    memory_bytes: what its driver reports, which is less or more than the name says.
    bandwidth: bytes a second of its memory, from the maker's data sheet.
    per_node: how many stand in one machine, usually.
    product: the label `nvidia.com/gpu.product` of its nodes, where we know it.
    is_here: whether it is this machine's.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    per_node: int = 8
    kind: Literal["nvidia", "amd", "cpu", "other"] = "nvidia"
    product: str | None = None
    is_here: bool = False

    @property
    def resource(self) -> str:
        """The Kubernetes resource that stands for it."""
        return "amd.com/gpu" if self.kind == "amd" else "nvidia.com/gpu"

    @property
    def uses_marlin(self) -> bool:
        """Whether vLLM runs INT4 experts with its Marlin kernel there."""
        return self.kind in ("nvidia", "other")


DEVICES = {
    "l40s": Device(name="L40S", memory_bytes=46_068 * MIB, bandwidth=0.864e12, product="NVIDIA-L40S"),
    "a100": Device(
        name="A100 80", memory_bytes=81_920 * MIB, bandwidth=2.039e12, product="NVIDIA-A100-SXM4-80GB"
    ),
    "h100": Device(
        name="H100", memory_bytes=81_559 * MIB, bandwidth=3.35e12, product="NVIDIA-H100-80GB-HBM3"
    ),
    "h200": Device(name="H200", memory_bytes=143_771 * MIB, bandwidth=4.8e12, product="NVIDIA-H200"),
    "b200": Device(name="B200", memory_bytes=183_359 * MIB, bandwidth=8.0e12, product="NVIDIA-B200"),
    "mi300x": Device(name="MI300X", memory_bytes=196_592 * MIB, bandwidth=5.3e12, kind="amd"),
}
# Two sockets of twelve channels each, at 90 % of DDR5-4800 or -6400; what a process gets is less.
CPU_SERVERS = tuple(
    Device(name=f"CPU, {size} GiB", memory_bytes=size * GIB, bandwidth=0.83e12, per_node=1, kind="cpu")
    for size in (384, 768, 1024, 1536)
)


def devices_here() -> list[Device]:
    """Return this machine's GPUs, one of each kind; where it has none, the machine as a CPU server."""
    found = Counter(list_gpus())
    if not found:
        memory = total_memory_bytes()
        name = f"this machine, {memory / GIB:.0f} GiB"
        return [Device(name=name, memory_bytes=memory, bandwidth=0.0, per_node=1, kind="cpu", is_here=True)]
    return [
        Device(
            name=f"{gpu.name}, this machine's",
            memory_bytes=gpu.memory_bytes,
            bandwidth=_bandwidth(gpu),
            per_node=number,
            kind="amd" if gpu.vendor == "amd" else "nvidia",
            is_here=True,
        )
        for gpu, number in found.items()
    ]


def _bandwidth(gpu: Gpu) -> float:
    """Return the bandwidth of a GPU that is in the table by this name; 0 for another."""
    label = gpu.name.replace(" ", "-")
    return next((device.bandwidth for device in DEVICES.values() if device.product == label), 0.0)


def asked_gpu(name: str | None, memory_gib: float | None) -> Device:
    """Return the GPU of --gpu or --gpu-memory, of which one is given. Raises DeployError."""
    if name is None:
        assert memory_gib is not None
        return unnamed_gpu(memory_gib)
    if memory_gib is not None:
        raise DeployError(f"give {argument('gpu')} or {argument('gpu_memory')}, not both")
    return find_device(name)


def find_device(name: str) -> Device:
    """Return the GPU of this name, such as `h200`. Raises DeployError."""
    key = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    key = {"a10080": "a100", "a10080gb": "a100", "h10080gb": "h100"}.get(key, key)
    if key not in DEVICES:
        raise DeployError(
            f"{argument('gpu', name)} is not in the table ({', '.join(DEVICES)}); give its memory with "
            f"{argument('gpu_memory')}"
        )
    return DEVICES[key]


def unnamed_gpu(memory_gib: float) -> Device:
    """Return a GPU known by its memory alone; no speed can be told."""
    if not 1 <= memory_gib <= 4096:
        raise DeployError(f"{argument('gpu_memory', memory_gib)} is not in 1..4096 GiB")
    return Device(
        name=f"{memory_gib:g} GiB GPU", memory_bytes=int(memory_gib * GIB), bandwidth=0.0, kind="other"
    )


def cpu_server(memory_gib: float) -> Device:
    """Return a CPU server of this much memory."""
    if not 1 <= memory_gib <= 1 << 16:
        raise DeployError(f"{argument('memory', memory_gib)} is not in 1..65536 GiB")
    return Device(
        name=f"CPU, {memory_gib:g} GiB",
        memory_bytes=int(memory_gib * GIB),
        bandwidth=CPU_SERVERS[0].bandwidth,
        per_node=1,
        kind="cpu",
    )
