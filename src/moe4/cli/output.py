"""What commands print: names in it come from files and servers that anybody may have made."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from moe4.escape import visible_json, visible_lines

LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text to stdout, or stderr; control characters but newlines and tabs are written out."""
    typer.echo(visible_lines(str(text)), nl=nl, err=err)


def echo_json(value: object, *, ensure_ascii: bool = True, indent: int | None = None) -> None:
    """Print a value to stdout as JSON that stays JSON whatever its strings hold."""
    typer.echo(visible_json(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)))


@contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how many bytes of how many are done: a bar on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    with Progress(
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str) -> Callable[[int, int], None]:
    began = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < LINE_SECONDS or not done:
            return
        said = now
        minutes, seconds = divmod(round((now - began) * (total - done) / done), 60)
        left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        echo(f"{what}: {100 * done // total} % of {total / 1e9:.1f} GB, {left} left", err=True)

    return tell
