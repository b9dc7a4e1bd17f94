"""Open regular files only, and read text and strict JSON from them within bounds.

A checkpoint comes from strangers. A named pipe in it would make a reader wait for ever, a deeply nested
object would exhaust the stack, and half of a surrogate pair could never be written again. Each is refused
here, in one line.
"""

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from moe4.errors import CheckpointError, MissingFileError, UnsafePathError
from moe4.strict_json import JsonObject, is_encodable, parse_json

MAX_JSON_BYTES = 100_000_000  # safetensors' own limit for a header; Kimi-K2's index has 15 MB
BLOBS = "blobs"  # where the cache of the hub keeps what its snapshots link to
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without a buffer, and without waiting if it is something else.

    Raises MissingFileError or CheckpointError.
    """
    try:
        check_kind(path, path.stat().st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            check_kind(path, os.fstat(descriptor).st_mode)
            return os.fdopen(descriptor, "rb", buffering=0)
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError:
        found = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise MissingFileError(f"{path} {found}") from None
    except (OSError, ValueError) as error:  # a ValueError is a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read: {reason}") from None


def check_kind(path: Path, mode: int) -> None:
    """Raise CheckpointError, with what it is instead, unless the mode is a regular file's."""
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise CheckpointError(f"{path} is {kind}, not a regular file; put the file itself there")


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return a regular file's bytes. Raises CheckpointError, also if there are more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise CheckpointError(f"{path} has {size} bytes; at most {max_bytes} are read")
        try:
            return read_exactly(file, size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Iterator[bytes]:
    """Yield the lines of a regular file, each with its end. Raises CheckpointError, also for one too long."""
    try:
        with io.BufferedReader(open_regular(path)) as file:  # type: ignore[type-var]
            yield from lines_of(file, path, max_bytes)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def lines_of(file: BinaryIO, path: Path, max_bytes: int = MAX_JSON_BYTES) -> Iterator[bytes]:
    """Yield the lines of an open file, each with its end. Raises CheckpointError for one too long."""
    number = 1
    while line := file.readline(max_bytes + 1):
        if len(line) > max_bytes:
            raise CheckpointError(
                f"{path}: line {number} does not end within {max_bytes} bytes; write one document a line"
            )
        yield line
        number += 1


def read_exactly(file: BinaryIO, num_bytes: int) -> bytes:
    """Return the next bytes of an unbuffered file, fewer only at its end."""
    pieces, missing = [], num_bytes
    while missing and (piece := file.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def read_text(path: Path) -> str:
    """Return the text of a regular UTF-8 file. Raises CheckpointError."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> JsonObject:
    """Read a JSON object that can be written again. Raises CheckpointError."""
    data = read_bytes(path, max_bytes)
    try:
        value = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def has_control_characters(text: str) -> bool:
    """Say whether text has line breaks, escape sequences and the like, which no name needs."""
    return not text.isprintable() and any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in text)


def require_inside(path: Path, folder: Path) -> None:
    """Raise UnsafePathError if a file of a checkpoint or release is a link out of it, or to nowhere."""
    if not path.is_symlink():
        return
    home = folder.resolve()
    homes = [home, home.parent.parent / BLOBS] if home.parent.name == "snapshots" else [home]
    try:
        target = path.resolve()
    except (OSError, RuntimeError):
        raise UnsafePathError(f"{path} is a link that leads in a circle") from None
    if not any(home in target.parents for home in homes):
        raise UnsafePathError(
            f"{path} is a link to {target}, outside {folder}; put a copy of the file in its place, "
            "or remove the link"
        )
    if not target.exists():
        raise MissingFileError(
            f"{path} is a link to {path.readlink()}, which does not exist; put the file in its place"
        )


def check_file_name(path: Path) -> None:
    """Raise CheckpointError for a name that no message or report could hold."""
    if has_control_characters(path.name) or not is_encodable(path.name):
        raise CheckpointError(f"{path.parent} holds {path.name!r}, a name that is not plain text; rename it")
