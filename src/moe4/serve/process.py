"""Run vLLM as a child: ready or dead, signals passed on, nothing of it left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from moe4.arguments import argument
from moe4.errors import OutputError, ServeError
from moe4.files.durable import check_output
from moe4.serve.command import ServeCommand
from moe4.serve.log import last_error

POLL_SECONDS = 0.25
# vLLM ends its requests and processes on the first signal; after this long it is killed.
GRACE_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServerProcess:
    """One vLLM server in a session of its own, its output in a log file."""

    def __init__(self, command: ServeCommand, log_path: Path) -> None:
        """Start it. It gets SIGTERM when this process dies, whatever kills it."""
        self.command = command
        self.log_path = log_path
        self._stop_signal: int | None = None
        self._stop_time: float | None = None
        with log_path.open("wb") as log:
            self._child = subprocess.Popen(
                command.arguments,
                env={**os.environ, **command.environment, **command.secrets},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )

    @property
    def stopping(self) -> bool:
        """Say whether the user has stopped it."""
        return self._stop_signal is not None

    @property
    def runs(self) -> bool:
        """Say whether vLLM has not ended."""
        return self._child.poll() is None

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Leave nothing of vLLM running afterwards, however the inside is left."""
        try:
            yield
        finally:
            self._end()

    @contextlib.contextmanager
    def passing_signals(self) -> Iterator[None]:
        """Pass SIGINT, SIGTERM and SIGHUP on to vLLM while inside; leave nothing of it running."""
        # A signal that is ignored, as SIGHUP is under nohup, stays ignored.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in heard}
        try:
            with self.ending():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait_until_ready(self, on_poll: Callable[[], None]) -> bool:
        """Return True when the API answers, False if the user stopped it. Raises ServeError if vLLM ends."""
        health = f"{self.command.url.removesuffix('/v1')}/health"
        while self._runs(on_poll):
            if self._stop_signal is None and _answers(health):
                return True
        if self._stop_signal is not None:
            return False
        raise ServeError(f"vLLM did not start: {self.reason()}; its log: {self.log_path}")

    def wait_until_stopped(self, on_poll: Callable[[], None]) -> None:
        """Return when vLLM has ended because the user stopped it. Raises ServeError if it ended by itself."""
        while self._runs(on_poll):
            pass
        if self._stop_signal is None:
            raise ServeError(f"vLLM stopped: {self.reason()}; its log: {self.log_path}")

    def _runs(self, on_poll: Callable[[], None]) -> bool:
        """Wait a moment and say whether vLLM still runs; kill it if it does long after its stop signal."""
        time.sleep(POLL_SECONDS)
        on_poll()
        if self._stop_time is not None and time.monotonic() - self._stop_time > GRACE_SECONDS:
            self._signal_group(signal.SIGKILL)
        return self._child.poll() is None

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if self._stop_signal is not None:
            self._signal_group(signal.SIGKILL)
            return
        self._stop_signal, self._stop_time = number, time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)

    def _end(self) -> None:
        """Stop vLLM if it runs, then kill what is left in its session."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(GRACE_SECONDS)
        self._signal_group(signal.SIGKILL)
        self._child.wait()

    def _signal_group(self, number: int) -> None:
        # The child leads its session, so its process group has its number, while any member of it runs.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def reason(self) -> str:
        """Return why vLLM has ended, from its log."""
        code = self._child.returncode
        ended = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        error = last_error(self.log_path.read_text(encoding="utf-8", errors="replace"))
        return f"{error} ({ended})" if error else ended


class LogFollower:
    """Copy what is new in a log to a stream, each time it is called; the log is there when it first is."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self._path, self._stream = path, stream
        self._log: IO[str] | None = None

    def __call__(self) -> None:
        """Copy the new text."""
        if self._log is None:
            self._log = self._path.open(encoding="utf-8", errors="replace")
        self._stream.write(self._log.read())
        self._stream.flush()


def check_log(path: Path) -> None:
    """Raise ServeError unless a log that the user named can be written."""
    if not path.parent.is_dir():
        raise ServeError(
            f"{argument('log', path)}: there is no folder {path.parent}; create it, or give another file"
        )
    try:
        check_output(path)
    except OutputError as error:
        raise ServeError(f"{argument('log')}: {error}") from None


def new_log_path(port: int) -> Path:
    """Create an empty log file in the folder for temporary files."""
    handle, name = tempfile.mkstemp(prefix=f"moe4-serve-{port}-", suffix=".log")
    os.close(handle)
    return Path(name)


def _die_with(parent: int) -> Callable[[], None]:
    """Return a function for the child, before it becomes vLLM: SIGTERM when the parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return prepare


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
