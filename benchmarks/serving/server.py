"""A server for a benchmark, started by `moe4 serve` as a user starts it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A server that answers. seconds: from the command until it did."""

    process: "subprocess.Popen[str]"
    url: str
    model: str
    seconds: float

    def pause(self) -> None:
        """Stop its processes where they are, so that they take no processor from another server."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them run again."""
        self._signal(signal.SIGCONT)

    def processes(self) -> list[int]:
        """Return vLLM's processes."""
        return _descendants(self.process.pid)

    def _signal(self, number: int) -> None:
        for child in self.processes():
            os.kill(child, number)


@contextmanager
def start_server(
    folder: Path, log: Path, options: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server on a free port and stop it at the end.

    options: further ones for `moe4 serve`. environment: variables set beside those of this process.
    Raises SystemExit with the log's name if it does not start.
    """
    command = [sys.executable, "-m", "moe4", "serve", str(folder), "--port", "0", "--json", "--log", str(log)]
    process = subprocess.Popen(
        [*command, *options],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start; its log: {log}")
        ready = json.loads(line)
        yield Server(process=process, url=ready["url"], model=ready["model"], seconds=ready["seconds"])
    finally:
        for child in _descendants(process.pid):  # one that is paused would not hear the signal
            os.kill(child, signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.wait()


def _descendants(parent: int) -> list[int]:
    """Return the processes below one, by what the system says of their parents."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, open_ = [], [parent]
    while open_:
        below = children.get(open_.pop(), [])
        found += below
        open_ += below
    return found
