"""Open regular files only, and read text and strict JSON from them within bounds.

A checkpoint comes from strangers. A named pipe in it would make a reader wait for ever, a deeply nested
object would exhaust the stack, and half of a surrogate pair could never be written again. Each is refused
here, in one line.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from moe4.errors import CheckpointError, MissingFileError, UnsafePathError

MAX_JSON_BYTES = 100_000_000  # safetensors' own limit for a header; Kimi-K2's index has 15 MB
MAX_DEPTH = 64
BLOBS = "blobs"  # where the cache of the hub keeps what its snapshots link to
MAX_DIGITS = 40  # tokenizers write 10**30 for a length without a limit
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
        raise MissingFileError(f"{path} {found}; download it again") from None
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


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object that can be written again. Raises CheckpointError."""
    data = read_bytes(path, max_bytes)
    try:
        value = parse_json(data)
        _check_values(value)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 JSON as the standard has it. Raises ValueError.

    Python's own parser also takes NaN and Infinity, keys that repeat, and numbers of any size.
    """
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_unique_keys,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None


def is_encodable(text: str) -> bool:
    """Say whether text can be written as UTF-8; half of a surrogate pair cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def has_control_characters(text: str) -> bool:
    """Say whether text has line breaks, escape sequences and the like, which no name needs."""
    return not text.isprintable() and any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:24]} is too large for a double")
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")


def _check_values(value: Any) -> None:
    """Raise ValueError for nesting that is too deep and for text that cannot be written."""
    waiting: list[tuple[Any, str, int]] = [(value, "", 1)]
    while waiting:
        item, place, depth = waiting.pop()
        if isinstance(item, str):
            if not is_encodable(item):
                raise ValueError(f"{place!r:.80} holds half of a surrogate pair, which is no text")
            continue
        if not isinstance(item, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise ValueError(f"{place!r:.80} is nested deeper than {MAX_DEPTH} levels")
        entries = item.items() if isinstance(item, dict) else enumerate(item)
        for key, child in entries:
            if isinstance(key, str) and not is_encodable(key):
                raise ValueError(f"the key {key!r:.80} holds half of a surrogate pair, which is no text")
            if isinstance(child, dict | list | str):
                waiting.append((child, f"{place}.{key}".lstrip("."), depth + 1))


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
        raise CheckpointError(f"{path.parent} holds {path.name!r}, a name that is no plain text; rename it")
