"""Writes that survive a crash: a file has its final name only when it is whole and on disk.

Nothing here follows a link at the place that it writes to, or writes into a FIFO or a device. `write_output`
is for a file that a user names; it turns what the system refuses into one line.
"""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from moe4.errors import DiskSpaceError, OutputError

READ_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"
NO_ROOM = {
    errno.ENOSPC: "the volume is full",
    errno.EDQUOT: "the volume is full",
    errno.EFBIG: "a file would be longer than the volume or ulimit -f allows",
}
KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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


def create_file(path: Path) -> int:
    """Return a descriptor of a new file, open for writing; one of that name is removed, not written into."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def write_file(final: Path, data: bytes | memoryview, work_folder: Path | None = None) -> None:
    """Write a whole file as `write_pieces` does."""
    write_pieces(final, (data,), work_folder)


def write_pieces(final: Path, pieces: Iterable[bytes | memoryview], work_folder: Path | None = None) -> None:
    """Write a whole file atomically; if that fails, what had the name before still has it.

    It is written in `work_folder`, on the same file system, or else beside its final place. It keeps owner
    and mode of the file that it replaces.
    """
    folder = work_folder or final.parent
    descriptor, name = tempfile.mkstemp(prefix=".moe4-", suffix=PARTIAL_SUFFIX, dir=folder)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            _keep_mode(descriptor, final)
            os.fsync(descriptor)
        publish(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def check_output(path: Path) -> None:
    """Raise OutputError unless a path is a regular file, or a new one in a folder that is there."""
    try:
        kind = kind_of(path)
        parent_is_folder = path.parent.is_dir()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    if kind is not None and kind != "a file":
        raise OutputError(
            f"{path} cannot be written: it is {kind}; name a regular file, or one that is not there yet"
        )
    if not parent_is_folder:
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (kind and not os.access(path, os.W_OK)):
        raise OutputError(f"{path} cannot be written: {os.strerror(errno.EACCES)}")


def write_output(path: Path, data: bytes | str) -> None:
    """Write a file that the user named, whole or not at all. Raises OutputError or DiskSpaceError."""
    check_output(path)
    try:
        write_file(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskSpaceError(
                f"{path} cannot be written: {NO_ROOM[error.errno]}; nothing there was changed"
            ) from None
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def make_folder(path: Path) -> None:
    """Make a folder for output, with those above it, unless it is there. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{path} cannot be made a folder: it is {kind_of(path)}") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be made a folder: {error.strerror}") from None


def append_line(path: Path, line: str) -> None:
    """Append one line durably; a torn line has no newline at its end. A link is not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def kind_of(path: Path) -> str | None:
    """Return what lies at a path, links not followed: "a file", "a link", "a folder" ...; None if nothing."""
    try:
        return KINDS.get(stat.S_IFMT(path.lstat().st_mode), "a file")
    except FileNotFoundError:
        return None


def read_pieces(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, a MiB at a time."""
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            yield piece


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _keep_mode(descriptor: int, final: Path) -> None:
    """Give a new file owner and mode of the one it replaces, or what a new file has."""
    try:
        before = final.lstat()
    except FileNotFoundError:
        os.fchmod(descriptor, 0o666 & ~_umask())
        return
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _umask() -> int:
    """Return the mask of new files' modes; it is set for a moment, for there is no other way to read it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
