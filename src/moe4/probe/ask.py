"""Ask a server for a release's expected answers: the check of check.py, as moe4's commands use it."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe4.errors import ProbeError
from moe4.probe import check
from moe4.probe.check import describe
from moe4.probe.form import PROBE_NAME, read_probe

__all__ = ["ask_server", "describe", "script_text", "showing_progress"]

OnProgress = Callable[[int, int], None]


def ask_server(
    release: Path,
    url: str,
    *,
    model: str | None = None,
    timeout: float = 120.0,
    verify: bool = True,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, Any]:
    """Return the verdict on the server at `url`, as `check.judge` makes it.

    release: a folder with moe4-probe.json, or that file. Raises ProbeError if the file cannot be used or the
    server cannot be asked.
    """
    path = release / PROBE_NAME if release.is_dir() else release
    read_probe(path)  # names what is wrong with the file better than the check, which must be small
    try:
        server = check.Server(url, key=os.environ.get("VLLM_API_KEY"), timeout=timeout, insecure=not verify)
        return check.check(check.read_expected(str(path)), server, model, on_progress)
    except check.CheckError as error:
        raise ProbeError(str(error)) from None


def script_text() -> str:
    """Return the check as a program of its own."""
    return Path(check.__file__).read_text(encoding="utf-8")


@contextlib.contextmanager
def showing_progress() -> Iterator[OnProgress]:
    """Yield a function that shows how many answers have come, on stderr where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with console.status("asking the server") as status:
        yield lambda done, total: status.update(f"asking the server: {done} of {total} answers")
    sys.stderr.flush()
