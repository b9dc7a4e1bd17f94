"""Which processors this process may use, how they are built, and how much of their time it may take.

vLLM looks at the affinity mask, at cores and at NUMA nodes; a container's share of time it does not look at.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moe4.machine.control_groups import group_folders, text_of

SYSTEM = Path("/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Processors:
    """The processors of an affinity mask.

    cores: the logical processors of each physical core, ascending; more than one where threads share a core.
    num_nodes: NUMA nodes they belong to.
    quota: processors' worth of time the control groups allow; None without a limit.
    """

    cores: tuple[tuple[int, ...], ...]
    num_nodes: int = 1
    quota: float | None = None

    @property
    def num_logical(self) -> int:
        """How many logical processors there are."""
        return sum(len(core) for core in self.cores)


def read_processors(root: Path = SYSTEM) -> Processors:
    """Look at this machine's processors; what the system does not tell is taken as plain and unlimited.

    root: where proc and sys are.
    """
    allowed = sorted(os.sched_getaffinity(0))
    cores = {_siblings(root, processor, allowed) for processor in allowed}
    nodes = [
        set(parse_list(text_of(path))) for path in (root / "sys/devices/system/node").glob("node*/cpulist")
    ]
    return Processors(
        cores=tuple(sorted(cores)),
        num_nodes=max(1, sum(not node.isdisjoint(allowed) for node in nodes)),
        quota=read_quota(root),
    )


def read_quota(root: Path = SYSTEM) -> float | None:
    """Return the least share of time that this process's control groups allow, in processors; None if any."""
    found: list[float] = []
    for folder in group_folders("cpu", root):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            share = _share(" ".join(text_of(folder / file) for file in files).split())
            if share is not None:
                found.append(share)
    return min(found, default=None)


def num_usable() -> int:
    """Return how many logical processors this process may run on."""
    return len(os.sched_getaffinity(0))


def read_cpuinfo(root: Path = SYSTEM) -> dict[str, str]:
    """Return the fields of the first processor, of those that Linux describes."""
    first = text_of(root / "proc/cpuinfo").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def read_flags(fields: dict[str, str]) -> list[str]:
    """Return the processor's features, as `read_cpuinfo` gives them on x86 or on Arm."""
    return (fields.get("flags") or fields.get("Features") or "").split()


def parse_list(text: str) -> list[int]:
    """Read the kernel's form of a list, `0-3,8`."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _siblings(root: Path, processor: int, allowed: Iterable[int]) -> tuple[int, ...]:
    """Return the processors of the mask that share a core with this one, itself included."""
    text = text_of(root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    return tuple(sorted({processor, *(set(parse_list(text)) & set(allowed))}))


def _share(words: list[str]) -> float | None:
    """Return quota over period, both in microseconds; None for no limit or no such files."""
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit():
        return None
    return int(words[0]) / int(words[1]) if int(words[1]) else None
