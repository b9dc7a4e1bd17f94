"""Writes that survive a crash: a file has its final name only when it is whole and on disk."""

import hashlib
import os
from pathlib import Path

READ_BYTES = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished, synced file its final name, atomically and durably."""
    temporary.replace(final)
    sync_folder(final.parent)
    if temporary.parent != final.parent:
        sync_folder(temporary.parent)


def write_file(final: Path, data: bytes | memoryview, work_folder: Path) -> None:
    """Write a whole file atomically, by way of `work_folder`, which must be on the same file system."""
    temporary = work_folder / f"{final.name}.partial"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, final)


def append_line(path: Path, line: str) -> None:
    """Append one line durably; a torn line has no newline at its end."""
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
