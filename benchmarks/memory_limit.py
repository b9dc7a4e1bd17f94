"""A control group that limits the memory of a benchmark's processes, page cache included. Needs root."""

import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OLD = (ROOT / "memory").is_dir()  # version 1 of control groups
GROUP = (ROOT / "memory" if OLD else ROOT) / "moe4-benchmark"


def join_group(limit_bytes: int) -> None:
    """Put this process, and what it starts from now on, into the group."""
    GROUP.mkdir(exist_ok=True)
    (GROUP / ("memory.limit_in_bytes" if OLD else "memory.max")).write_text(str(limit_bytes))
    (GROUP / "cgroup.procs").write_text(str(os.getpid()))


def peak_bytes() -> int:
    """Return the most memory the group has used."""
    return int((GROUP / ("memory.max_usage_in_bytes" if OLD else "memory.peak")).read_text())


def remove_group() -> None:
    """Remove the group, and with it what it has counted, when its last process has ended."""
    for _ in range(300):
        try:
            GROUP.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{GROUP} still has processes")


def drop_from_cache(files: list[Path]) -> None:
    """Drive files out of the page cache; their pages would count for another group."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
