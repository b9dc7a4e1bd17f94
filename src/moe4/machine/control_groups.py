"""The control groups of this process, in either version: where a container's limits stand."""

from collections.abc import Iterator
from pathlib import Path


def group_folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders in which a controller's limits on this process may stand; not all need exist.

    root: where proc and sys are.
    """
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in dict.fromkeys((controllers, controller, "unified")):
            # A container often sees its own group as the root of the mount, under another path than this.
            yield from _upwards(root / "sys/fs/cgroup" / mount, path)


def text_of(path: Path) -> str:
    """Return a file of the system's, or nothing if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _upwards(mount: Path, path: str) -> list[Path]:
    """Return the folder of a group and of those it is in, up to the mount."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]
