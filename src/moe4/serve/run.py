"""A server from its start to its end: wait for it, check its answers, say that it is ready."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe4.arguments import argument
from moe4.errors import ServeError
from moe4.probe.ask import check_when_ready
from moe4.progress import OnProgress, Pace, Progress, ignore
from moe4.serve.chat import open_client
from moe4.serve.command import ServeCommand, ServeOptions, build_command
from moe4.serve.host import free_port, inspect_host
from moe4.serve.model import read_served_model
from moe4.serve.process import ServerProcess, new_log_path
from moe4.strict_json import JsonObject

NOT_THE_RELEASE = (
    "moe4: this server's answers are not the release's, but it keeps serving. "
    "Stop it, and read docs/probe-check.md"
)
STARTING = "starting vLLM: half a minute, longer for a large model"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A server that answers. probe: whether its answers are the release's; None where that was not asked."""

    url: str
    model: str
    seconds: float
    probe: bool | None

    def as_dict(self) -> JsonObject:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningServer:
    """A server that answers: what `moe4.serve` yields.

    url: of its API, up to and with /v1. model: its name in requests. key: what requests must carry, if any.
    seconds: what the start took. probe: whether its answers are the release's; None where that was not asked.
    log: vLLM's log.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    seconds: float
    probe: bool | None
    log: Path
    _process: ServerProcess = field(repr=False)

    @property
    def is_running(self) -> bool:
        """Whether vLLM has not ended."""
        return self._process.runs

    def client(self) -> Any:
        """Return an `openai.OpenAI` for this server. Raises MissingDependencyError without that package."""
        return open_client(self.url, self.key)

    def __str__(self) -> str:
        return f"{self.url} serves {self.model}, ready after {self.seconds:.0f} s"


def prepare(
    release: Path, options: ServeOptions, environment: Mapping[str, str], *, find_port: bool = True
) -> ServeCommand:
    """Return the command that serves a release on this machine.

    find_port: make sure that the port is free; 0 becomes a free one.
    Raises ServeError, CheckpointError or MissingDependencyError for what cannot be served.
    """
    model, host = read_served_model(release), inspect_host()
    if find_port:
        options = replace(options, port=free_port(options.host, options.port))
    return build_command(model, host, options, dict(environment))


@contextmanager
def serving(
    built: ServeCommand,
    release: Path,
    *,
    log: Path | None = None,
    check: bool = False,
    say: Say = lambda text: None,
    on_progress: OnProgress = ignore,
) -> Iterator[RunningServer]:
    """Yield a server that answers, and stop it afterwards. Signals are left alone.

    log: kept; a temporary one is removed where all went well. check: ask for the expected answers first.
    Raises ServeError where vLLM does not start, or has ended by itself at the end.
    """
    path = log or new_log_path(built.port)
    began = time.monotonic()
    server = ServerProcess(built, path)
    with server.ending():
        server.wait_until_ready(lambda: on_progress(Progress(stage=STARTING)))
        found = _check(built, release, server, say, on_progress) if check else None
        yield RunningServer(
            url=built.url,
            model=built.model_name,
            key=built.key,
            seconds=time.monotonic() - began,
            probe=found,
            log=path,
            _process=server,
        )
        if not server.runs:
            raise ServeError(f"vLLM stopped: {server.reason()}; its log: {path}")
    if log is None:
        path.unlink(missing_ok=True)


def run_server(
    built: ServeCommand,
    release: Path,
    log: Path,
    *,
    check: bool,
    follow: Callable[[], None],
    say: Say,
    on_ready: Callable[[Ready], None],
    on_progress: OnProgress = ignore,
) -> None:
    """Start vLLM, wait until it is ready and then until it stops; signals are passed on.

    This is the command's: it takes the process's signals. check: ask it for the release's expected answers
    first. follow: is called while it is waited for.
    """

    def wait() -> None:
        follow()
        on_progress(Progress(stage=STARTING))

    server = ServerProcess(built, log)
    began = time.monotonic()
    with server.passing_signals():
        ready = server.wait_until_ready(wait)
        found = _check(built, release, server, say, on_progress) if ready and check else None
        if ready and not server.stopping:
            seconds = time.monotonic() - began
            on_ready(Ready(url=built.url, model=built.model_name, seconds=seconds, probe=found))
        if ready:
            server.wait_until_stopped(follow)


def _check(
    built: ServeCommand, release: Path, server: ServerProcess, say: Say, on_progress: OnProgress
) -> bool | None:
    """Ask the server for the release's expected answers; say what came of it, unless it is being stopped."""
    pace = Pace(on_progress, "asking the server")
    ok, text = check_when_ready(release, built.url, built.model_name, key=built.key, on_progress=pace.count)
    if not server.stopping:
        say(text)
        if ok is False:
            say(NOT_THE_RELEASE if built.rest == "bfloat16" else _further_rounded(built.rest))
    return ok


def _further_rounded(rest: str) -> str:
    return (
        f"moe4: {argument('rest', rest)} rounds what the release has in more bits, which may move "
        "answers beyond "
        f"the bounds. To check the release itself, serve it without {argument('rest')}"
    )
