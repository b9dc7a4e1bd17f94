"""A server from its start to its end: wait for it, check its answers, say that it is ready."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe4.probe.ask import check_when_ready, showing_progress
from moe4.serve.command import ServeCommand
from moe4.serve.process import ServerProcess

NOT_THE_RELEASE = (
    "moe4: this server's answers are not the release's, but it keeps serving. "
    "Stop it, and read docs/probe-check.md"
)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A server that answers. probe: whether its answers are the release's; None where that was not asked."""

    url: str
    model: str
    seconds: float
    probe: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "url": self.url,
            "model": self.model,
            "seconds": round(self.seconds, 1),
            "probe": self.probe,
        }

    def describe(self) -> str:
        """Return one line."""
        return f"moe4: ready after {self.seconds:.0f} s: {self.url} serves {self.model}"


def run_server(
    built: ServeCommand,
    release: Path,
    log: Path,
    *,
    check: bool,
    follow: Callable[[], None],
    while_waiting: AbstractContextManager[object],
    say: Say,
    on_ready: Callable[[Ready], None],
) -> None:
    """Start vLLM, wait until it is ready and then until it stops; signals are passed on.

    check: ask it for the release's expected answers first. follow: is called while it is waited for.
    """
    server = ServerProcess(built, log)
    began = time.monotonic()
    with server.passing_signals():
        with while_waiting:
            ready = server.wait_until_ready(follow)
        found = _check(built, release, server, say) if ready and check else None
        if ready and not server.stopping:
            seconds = time.monotonic() - began
            on_ready(Ready(url=built.url, model=built.model_name, seconds=seconds, probe=found))
        if ready:
            server.wait_until_stopped(follow)


def _check(built: ServeCommand, release: Path, server: ServerProcess, say: Say) -> bool | None:
    """Ask the server for the release's expected answers; say what came of it, unless it is being stopped."""
    with showing_progress() as on_progress:
        ok, text = check_when_ready(
            release, built.url, built.model_name, key=built.key, on_progress=on_progress
        )
    if not server.stopping:
        say(text)
        if ok is False:
            say(NOT_THE_RELEASE)
    return ok
