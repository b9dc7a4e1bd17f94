"""Compressed files of text, unpacked as they are read and never to more than data of their size would be."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from moe4 import extras
from moe4.errors import CalibrationError
from moe4.files.regular import open_regular

# What a file may unpack to: this many bytes, or so many times its own size. Text reaches a factor of 20.
FREE_BYTES, MOST_TIMES = 64 << 20, 200
MOST_MEMORY = 256 << 20  # of the window that a compressor's header asks for
PIECE = 1 << 16

XZ = b"\xfd7zXZ\x00"
SIGNATURES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", XZ: "xz", b"\x28\xb5\x2f\xfd": "zstd"}
REFUSED = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf": "a 7z archive"}


def open_unpacked(path: Path) -> tuple[io.BufferedReader, str | None]:
    """Open a regular file for reading, and say by what it is compressed, if it is.

    Reading raises CalibrationError for a damaged file and for one that unpacks to too much.
    """
    raw = open_regular(path)
    head = raw.read(6)
    raw.seek(0)
    for signature, archive in REFUSED.items():
        if head.startswith(signature):
            raise CalibrationError(f"{path} is {archive}; unpack it")
    kind = next((name for signature, name in SIGNATURES.items() if head.startswith(signature)), None)
    if kind is None:
        return io.BufferedReader(raw), None  # type: ignore[arg-type]
    if kind == "zstd":
        extras.require("pyarrow", needed_by=f"{path}, compressed with zstd,")
    size = os.fstat(raw.fileno()).st_size
    stream = _Bounded(_OPENERS[kind](raw), path, max(FREE_BYTES, MOST_TIMES * size))
    return io.BufferedReader(stream, PIECE), kind


class _Bounded(io.RawIOBase):
    """What a decompressor gives, with a bound, and its errors in words."""

    def __init__(self, inner: Any, path: Path, most_bytes: int) -> None:
        self._inner, self._path, self._most, self._num_bytes = inner, path, most_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer. Raises CalibrationError."""
        try:
            piece = self._inner.read(len(buffer))
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CalibrationError(f"{self._path} is damaged or cut short: {reason}") from None
        self._num_bytes += len(piece)
        if self._num_bytes > self._most:
            raise CalibrationError(
                f"{self._path} unpacks to more than {self._most >> 20} MiB, more than text of its size can; "
                "unpack it yourself if that is right"
            )
        buffer[: len(piece)] = piece
        return len(piece)


class _Xz:
    """The streams of an .xz file, with a bound on the memory that its header asks for."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._decompressor = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MOST_MEMORY)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end."""
        while True:
            if self._decompressor.eof:
                rest = (self._decompressor.unused_data or self._raw.read(PIECE)).lstrip(b"\0")
                if not rest:
                    return b""
                self._decompressor = self._new()
                piece = self._decompressor.decompress(rest, size)
            else:
                data = self._raw.read(PIECE) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not data:
                    raise EOFError("the file ends inside it")
                piece = self._decompressor.decompress(data, size)
            if piece:
                return piece


def _open_zstd(raw: IO[bytes]) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")


_OPENERS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bzip2": bz2.BZ2File,
    "xz": _Xz,
    "zstd": _open_zstd,
}
