"""How moe4 reads a file that it has written itself: typed, and whatever is wrong with it in one line.

The line says which file, what was expected and found, which version of moe4 wrote it if that is another one,
and what to do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from moe4 import __version__
from moe4.errors import CheckpointError, Moe4Error
from moe4.escape import visible
from moe4.files.regular import MAX_JSON_BYTES, read_bytes
from moe4.schema import decode, parse

Form = TypeVar("Form", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFile(Generic[Form]):
    """A kind of file: its form, the error for one that cannot be used, and what then helps.

    A form with the field `version` states the only one that is read. writer: where in the file the version of
    moe4 stands that wrote it.
    """

    form: type[Form]
    error: type[Moe4Error]
    remedy: str
    writer: tuple[str, ...] = ()
    max_bytes: int = MAX_JSON_BYTES

    def read(self, path: Path) -> Form:
        """Return what a file holds. Raises `error` with one line, also for a file that cannot be read."""
        try:
            data = read_bytes(path, self.max_bytes)
        except CheckpointError as error:
            raise self.error(f"{error}; {self.remedy}") from None
        return self.decode(data, path)

    def decode(self, data: bytes, where: object) -> Form:
        """Return what the bytes of a file hold. Raises `error`."""
        try:
            document = decode(data, f"{where} is damaged", self.error)
        except Moe4Error as error:
            raise self.error(f"{error}; {self.remedy}") from None
        return self.parse(document, where)

    def parse(self, document: Any, where: object) -> Form:
        """Return a document of JSON as a typed value. Raises `error`."""
        expected = self.form.model_fields.get("version")
        stated = document.get("version") if isinstance(document, dict) else None
        writer = self._other_writer(document)
        origin = f" (moe4 {writer} wrote it, this is {__version__})" if writer else ""
        remedy = f"use moe4 {writer}, or {self.remedy}" if writer else self.remedy
        if expected is not None and isinstance(stated, int) and stated != expected.default:
            raise self.error(
                f"{where} is of version {stated}, and this moe4 reads version {expected.default}"
                f"{origin}; {remedy}"
            )
        try:
            fault = "cannot be read" if writer else "is damaged"
            return parse(self.form, document, f"{where} {fault}", self.error)
        except Moe4Error as error:
            raise self.error(f"{error}{origin}; {remedy}") from None

    def _other_writer(self, document: Any) -> str:
        """Return which other version of moe4 wrote a document; empty if it does not say so."""
        found = document
        for key in self.writer:
            found = found.get(key) if isinstance(found, dict) else None
        return visible(f"{found:.40}") if isinstance(found, str) and found != __version__ else ""
