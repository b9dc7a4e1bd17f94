"""How much memory this process may take, on a machine and in a container."""

import os
from collections.abc import Iterator
from pathlib import Path

from moe4.machine.control_groups import group_folders, text_of

SYSTEM = Path("/")
# A group's limit and what it uses, in the two versions of control groups.
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def total_memory_bytes() -> int:
    """Return the memory of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes(root: Path = SYSTEM) -> int:
    """Return the memory this process and the page cache may still take, control groups considered.

    root: where proc and sys are. Without them it is the memory of the whole machine.
    """
    found = [total_memory_bytes()]
    for line in text_of(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable"):
            found.append(int(line.split()[1]) << 10)
    for folder in group_folders("memory", root):
        found += _room(folder)
    return max(0, min(found))


def _room(folder: Path) -> Iterator[int]:
    """Yield the group's limit, less what it uses apart from the page cache, which gives way."""
    for limit_name, used_name in LIMITS:
        limit, used = text_of(folder / limit_name).strip(), text_of(folder / used_name).strip()
        if not limit.isdigit() or not used.isdigit():  # no such file, or "max"
            continue
        entries = dict(line.split()[:2] for line in text_of(folder / "memory.stat").splitlines())
        cached = int(entries.get("total_cache", entries.get("file", 0)))
        yield int(limit) - max(0, int(used) - cached)
