"""A command's messages besides its result: lines on stderr and in a log file, all through logging.

-q keeps only warnings and errors; -v adds everything else that is logged. One Messages is active at a time.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from moe4.errors import OutputError
from moe4.escape import visible, visible_json, visible_lines

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
LEVELS = {0: logging.INFO, 1: logging.DEBUG}

logger = logging.getLogger("moe4")


@dataclass(kw_only=True, slots=True)
class Messages:
    """Which messages are shown. live: the display at the bottom of the terminal; lines go above it."""

    quiet: bool = False
    verbosity: int = 0
    live: Any = None

    @property
    def level(self) -> int:
        """The lowest level that is shown."""
        return logging.WARNING if self.quiet else LEVELS.get(self.verbosity, logging.DEBUG)

    @property
    def draws(self) -> bool:
        """Whether progress may be drawn: on a terminal, without -q."""
        return not self.quiet and sys.stderr.isatty()


current = Messages()


class _Lines(logging.Handler):
    """Writes lines to stderr, above the progress display."""

    def emit(self, record: logging.LogRecord) -> None:
        text = visible_lines(record.getMessage())
        if current.live is not None:
            current.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)


class _OneLine(logging.Formatter):
    """Keeps every record on one line, even if a name in it contains line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def echo(text: object = "", *, nl: bool = True) -> None:
    """Print a result to stdout, with control characters escaped, except newlines and tabs."""
    typer.echo(visible_lines(str(text)), nl=nl)


def echo_json(value: object, *, ensure_ascii: bool = True, indent: int | None = None) -> None:
    """Print a result to stdout as JSON that stays valid whatever its strings contain."""
    typer.echo(visible_json(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)))


def echo_result(result: Any, as_json: bool, *, ensure_ascii: bool = True, indent: int | None = None) -> None:
    """Print a result of the API as text, or as JSON."""
    if as_json:
        echo_json(result.as_dict(), ensure_ascii=ensure_ascii, indent=indent)
    else:
        echo(result)


def say(text: str) -> None:
    """Show a line to the user, unless -q is given."""
    logger.info("%s", text)


def warn(text: str) -> None:
    """Show a line to the user, even with -q."""
    logger.warning("%s", text)


@contextmanager
def messages(*, quiet: bool, verbosity: int, log_file: str | None) -> Iterator[None]:
    """Show and log messages as the options say. Raises OutputError if the log file cannot be written."""
    global current
    handlers: list[logging.Handler] = [_Lines()]
    if log_file is not None:
        handlers.append(_open_log(Path(log_file)))
    before, level = current, logger.level
    current = Messages(quiet=quiet, verbosity=verbosity)
    handlers[0].setLevel(current.level)
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if log_file is not None else current.level)
    try:
        yield
    finally:
        current = before
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _open_log(path: Path) -> logging.Handler:
    from moe4.files.durable import check_output

    check_output(path)
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"--log-file {path}: {error.strerror}; give another file") from None
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(_OneLine(LOG_FORMAT))
    return handler
