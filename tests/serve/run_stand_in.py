"""`moe4 serve` without vLLM: run the stand-in as its server. Arguments: stand_in.py's, and the grace."""

import sys
from pathlib import Path

from moe4.errors import ServeError
from moe4.serve import process
from moe4.serve.command import ServeCommand


def main(behaviour: str, port: str, pid_file: str, grace_seconds: str) -> None:
    process.GRACE_SECONDS = float(grace_seconds)
    script = str(Path(__file__).with_name("stand_in.py"))
    command = ServeCommand(
        arguments=(sys.executable, script, behaviour, port, pid_file),
        environment={},
        model_name="stand-in",
        url=f"http://127.0.0.1:{port}/v1",
        port=int(port),
    )
    server = process.ServerProcess(command, Path(pid_file).with_suffix(".log"))
    with server.passing_signals():
        _say("started")
        if server.wait_until_ready(lambda: None):
            _say("ready")
            server.wait_until_stopped(lambda: None)
    _say("stopped")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ServeError as error:
        sys.exit(f"error: {error}")
