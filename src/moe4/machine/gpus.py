"""The GPUs of this machine, as their drivers tell, without loading a library that would take hold of them."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe4.machine.control_groups import text_of

SYSTEM = Path("/")
NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
SECONDS = 20
AMD_VENDOR = "0x1002"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU: `vendor` is nvidia or amd."""

    vendor: str
    name: str
    memory_bytes: int


def list_gpus(root: Path = SYSTEM) -> list[Gpu]:
    """Return this machine's GPUs; none where no driver tells. root: where sys is."""
    return [*_nvidia(), *_amd(root)]


def _nvidia() -> Iterator[Gpu]:
    try:
        said = subprocess.run(NVIDIA, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return
    for line in said.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if name and mebibytes.strip().isdigit():
            yield Gpu(vendor="nvidia", name=name.strip(), memory_bytes=int(mebibytes) << 20)


def _amd(root: Path) -> Iterator[Gpu]:
    for device in sorted((root / "sys/class/drm").glob("card[0-9]*/device")):
        memory = text_of(device / "mem_info_vram_total").strip()
        if text_of(device / "vendor").strip() == AMD_VENDOR and memory.isdigit():
            name = text_of(device / "product_name").strip() or "AMD GPU"
            yield Gpu(vendor="amd", name=name, memory_bytes=int(memory))
