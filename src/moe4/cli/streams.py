"""Standard streams that a command can rely on: always open, and reporting failed writes."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class OutputLost(Exception):  # noqa: N818
    """Standard output cannot be written. Not an OSError, so that no handler mistakes it for a file's."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Output(io.FileIO):
    """Standard output; a failed write raises OutputLost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost(error) from error


class _Messages(io.FileIO):
    """Standard error; failed writes are ignored, so that work goes on when nobody can read its messages."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Open streams that the shell has closed (`>&-`), and replace sys.stdout and sys.stderr by the above.

    A closed standard output becomes one that cannot be written; a closed standard error becomes silent.
    Characters that the terminal's encoding lacks are escaped. Raises OutputLost, at the latest on exit; then
    sys.stderr stays replaced, so that the error can be reported.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _fill(number, flags)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    before = sys.stdout
    sys.stdout = _replace(sys.stdout, 1, _Output)
    sys.stderr = _replace(sys.stderr, 2, _Messages)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = before


def _fill(number: int, flags: int) -> None:
    """Open a closed descriptor; otherwise the next opened file would get its number."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, flags)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _replace(stream: TextIO | None, number: int, kind: type[io.FileIO]) -> TextIO:
    """Return a text stream over the descriptor, or the stream itself if someone replaced it, as in a test."""
    if stream is not None and (type(stream) is not io.TextIOWrapper or stream.fileno() != number):
        return stream
    raw = kind(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or raw.isatty(),
    )
