"""How much memory the machine and its control groups leave a process."""

from pathlib import Path

import pytest

from moe4.checkpoint import disk

GIB = 1 << 30
MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nSwapTotal: 0 kB\n"  # 8 GiB are available


def group(limit: str, used: int, cached: int) -> dict[str, str]:
    return {"memory.max": limit, "memory.current": str(used), "memory.stat": f"anon 1\nfile {cached}\n"}


def first_version(limit: int, used: int, cached: int) -> dict[str, str]:
    stat = f"cache 1\ntotal_cache {cached}\n"
    return {
        "memory.limit_in_bytes": str(limit),
        "memory.usage_in_bytes": str(used),
        "memory.stat": stat,
    }


@pytest.mark.parametrize(
    ("member", "groups", "expected"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/pod\n", {"pod": group("max", 2 * GIB, 0)}, 8 * GIB),
        ("0::/pod\n", {"pod": group(str(6 * GIB), 2 * GIB, 0)}, 4 * GIB),
        ("0::/pod\n", {"pod": group(str(6 * GIB), 2 * GIB, GIB)}, 5 * GIB),  # the page cache gives way
        ("0::/pod\n", {"pod": group(str(6 * GIB), GIB, 2 * GIB)}, 6 * GIB),
        ("0::/pod\n", {"pod": group(str(GIB), 2 * GIB, 0)}, 0),
        ("0::/pod\n", {"pod": group(str(64 * GIB), 2 * GIB, 0)}, 8 * GIB),
        # A parent's limit holds for its children, the root's too.
        ("0::/a/b\n", {"a": group(str(3 * GIB), 0, 0), "a/b": group("max", 0, 0)}, 3 * GIB),
        ("0::/a/b\n", {"": group(str(2 * GIB), 0, 0), "a/b": group(str(5 * GIB), 0, 0)}, 2 * GIB),
        # The first version has its own tree, and groups of other controllers say nothing of memory.
        ("5:memory:/pod\n", {"memory/pod": first_version(6 * GIB, 2 * GIB, GIB)}, 5 * GIB),
        ("4:cpu:/x\n5:memory:/pod\n", {"x": group("1", 0, 0), "memory/x": first_version(1, 0, 0)}, 8 * GIB),
        # In a container the path is the host's, of which only the root can be seen.
        ("0::/../../host\n", {"": group(str(3 * GIB), 0, 0)}, 3 * GIB),
    ],
)
def test_the_least_of_the_machine_and_every_group(
    member: str,
    groups: dict[str, dict[str, str]],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": member}
    for folder, parts in groups.items():
        files |= {f"sys/fs/cgroup/{folder}/{name}": text for name, text in parts.items()}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(disk, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    monkeypatch.setattr(disk, "CGROUPS", tmp_path / "sys/fs/cgroup")
    assert disk.available_memory_bytes() == expected
