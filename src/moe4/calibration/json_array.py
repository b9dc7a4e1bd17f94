"""The entries of a JSON array in a file, one after another: no more than an entry is held."""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path

from moe4.errors import CalibrationError
from moe4.files.regular import MAX_JSON_BYTES

PIECE = 1 << 16


def array_entries(file: io.BufferedReader, path: Path) -> Iterator[str]:
    """Yield the text of each entry. Raises CalibrationError for what is no array, or one entry too long."""
    reader, number = _Text(file, path), 0
    reader.take("[")
    while True:
        number += 1
        if reader.first() == "]" and number == 1:
            break
        yield reader.take_value(f"{path}: entry {number}")
        if reader.first() != ",":
            break
        reader.take(",")
    reader.take("]")
    if reader.first():
        raise CalibrationError(
            f"{path}: more text follows its JSON array; give one array, or a document a line"
        )


class _Text:
    """The text of a file, of which a piece is held."""

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._held, self._place, self._at_end = "", 0, False

    def first(self) -> str:
        """Go to the next character that is no space and return it; empty at the end."""
        while True:
            while self._place < len(self._held) and self._held[self._place].isspace():
                self._place += 1
            if self._place < len(self._held) or not self._read_more():
                return self._held[self._place : self._place + 1]

    def take(self, expected: str) -> None:
        """Go beyond a character. Raises CalibrationError if it is another."""
        found = self.first()
        if found != expected:
            shown = repr(found) if found else "the end of the file"
            raise CalibrationError(f"{self._path}: expected {expected!r} in its JSON array, found {shown}")
        self._place += 1

    def take_value(self, where: str) -> str:
        """Return the text of the JSON value that is next. Raises CalibrationError."""
        decoder = json.JSONDecoder()
        self.first()
        while True:
            try:
                _, end = decoder.raw_decode(self._held, self._place)
                if end < len(self._held) or self._at_end:
                    break
            except RecursionError:
                raise CalibrationError(f"{where}: not JSON: nested too deeply") from None
            except ValueError as error:
                if self._at_end:
                    raise CalibrationError(f"{where}: not JSON: {error}") from None
            if len(self._held) - self._place > MAX_JSON_BYTES:
                raise CalibrationError(f"{where} does not end within {MAX_JSON_BYTES} bytes")
            self._read_more()
        value, self._place = self._held[self._place : end], end
        return value

    def _read_more(self) -> bool:
        """Read as much again as is held; say whether there was anything."""
        self._held, self._place = self._held[self._place :], 0
        data = self._file.read(max(PIECE, len(self._held)))
        self._at_end = not data
        try:
            self._held += self._decoder.decode(data, final=self._at_end)
        except UnicodeDecodeError as error:
            raise CalibrationError(f"{self._path} is not UTF-8 text: {error.reason}") from None
        return not self._at_end
