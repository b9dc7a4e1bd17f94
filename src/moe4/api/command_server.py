"""What `moe4 serve` needs beyond `serve`: it owns its process, so it forwards signals and hides keys."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from moe4.api.operation import AnyPath, open_source, say
from moe4.progress import OnProgress, ignore

if TYPE_CHECKING:
    from moe4.serve.command import ServeCommand
    from moe4.serve.run import Ready


def find_release(release: AnyPath, revision: str | None, on_progress: OnProgress = ignore) -> Path:
    """Return a release's folder; download the whole release if it is on the hub. Raises HubError."""
    return open_source(release, revision, on_progress)


def check_log(log: Path | None) -> None:
    """Raise ServeError if the log that the user named cannot be written."""
    from moe4.serve.process import check_log as check

    if log is not None:
        check(log)


def make_log(port: int) -> Path:
    """Create an empty log in the folder for temporary files; return its path."""
    from moe4.serve.process import new_log_path

    return new_log_path(port)


def hide_keys(vllm_options: Sequence[str]) -> None:
    """Overwrite API keys in this process's command line, which `ps` shows."""
    from moe4.serve.extra import hide_arguments, take_keys

    hide_arguments(take_keys(tuple(vllm_options))[1])


def is_open(host: str) -> bool:
    """Return whether other machines can reach a server that listens on this address."""
    from moe4.serve.host import is_loopback

    return not is_loopback(host)


def run_server(
    built: "ServeCommand",
    release: Path,
    log: Path,
    *,
    check: bool,
    show_log: bool,
    on_ready: "Callable[[Ready], None]",
    on_progress: OnProgress = ignore,
) -> None:
    """Run vLLM until the user stops it or it exits; forward SIGINT, SIGTERM and SIGHUP to it.

    check: check the release's expected answers first. show_log: copy vLLM's log to stderr. on_ready: called
    once the server is ready. Raises ServeError if vLLM does not start, or exits by itself.
    """
    from moe4.serve.process import LogFollower
    from moe4.serve.run import run_server as run

    stderr: TextIO = sys.stderr
    run(
        built,
        release,
        log,
        check=check,
        follow=LogFollower(log, stderr) if show_log else lambda: None,
        say=say,
        on_ready=on_ready,
        on_progress=on_progress,
    )
