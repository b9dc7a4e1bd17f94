"""Memory that a process may take, as files of the system describe it."""

from pathlib import Path

import pytest

from moe4.machine.memory import available_memory_bytes, total_memory_bytes

MIB = 1 << 20
MEMINFO = "MemTotal:       4096000 kB\nMemFree:         100 kB\nMemAvailable:    2048000 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def second(folder: str, limit: int | str, used: int, cached: int) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/{folder}memory.max": f"{limit}\n",
        f"sys/fs/cgroup/{folder}memory.current": f"{used}\n",
        f"sys/fs/cgroup/{folder}memory.stat": f"anon 1\nfile {cached}\n",
    }


def first(folder: str, limit: int, used: int, cached: int) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"sys/fs/cgroup/memory/{folder}memory.usage_in_bytes": f"{used}\n",
        f"sys/fs/cgroup/memory/{folder}memory.stat": f"cache 7\ntotal_cache {cached}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 2048000 << 10),
        ("0::/\n", second("", "max", 5, 0), 2048000 << 10),
        ("0::/\n", second("", 600 * MIB, 0, 0), 600 * MIB),
        ("0::/\n", second("", 600 * MIB, 200 * MIB, 0), 400 * MIB),
        ("0::/\n", second("", 600 * MIB, 200 * MIB, 150 * MIB), 550 * MIB),  # the page cache gives way
        ("0::/\n", second("", 600 * MIB, 700 * MIB, 0), 0),
        (
            "0::/pod/run\n",
            {
                **second("", "max", 0, 0),
                **second("pod/", 300 * MIB, 0, 0),
                **second("pod/run/", 900 * MIB, 0, 0),
            },
            300 * MIB,
        ),
        ("0::/pod/run\n", second("", 500 * MIB, 0, 0), 500 * MIB),  # its own group is the root it sees
        ("4:cpu:/a\n3:memory:/pod\n", first("pod/", 700 * MIB, 100 * MIB, 60 * MIB), 660 * MIB),
        ("4:cpu:/pod\n", first("pod/", 700 * MIB, 0, 0), 2048000 << 10),  # another controller's group
        ("0::/\n", second("", 1 << 60, 0, 0), 2048000 << 10),
    ],
)
def test_the_least_of_all_limits_counts(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    root = write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **files})
    if total_memory_bytes() < 2048000 << 10:
        pytest.skip("this machine has less memory than the one described")
    assert available_memory_bytes(root) == expected


def test_a_machine_that_says_nothing_has_what_it_has(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path) == total_memory_bytes()


def test_this_machine_has_some() -> None:
    assert 0 < available_memory_bytes() <= total_memory_bytes()
