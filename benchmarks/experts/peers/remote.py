"""The benchmark's end of a worker: send a call, get the seconds it took and the result.

Between calls a worker is stopped by a signal, not merely idle: some engines' threads spin long after a call.
"""

import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from experts.layer import CALL_NAMES, Call
from experts.peers.catalog import ENGINES
from experts.peers.engine import AbsentError, BrokenError, Setting

PATIENCE_SECONDS = 600
BENCHMARKS = Path(__file__).parents[2]


class Worker:
    """A process that holds one variant of an engine. Raises AbsentError, or BrokenError when it ends."""

    def __init__(self, engine: str, variant: str, layer_file: Path, folder: Path, setting: Setting) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder / "log"
        python = setting.environment / "python" / "bin" / "python"
        if not python.exists():
            raise AbsentError(f"no {python}; make it with benchmarks/setup_peers.py")
        arguments = (
            engine,
            variant,
            layer_file,
            folder,
            setting.num_threads,
            setting.max_tokens,
            setting.environment,
        )
        variables = ENGINES[engine][variant].variables
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, "-m", "experts.peers.worker", *map(str, arguments)],
                env={**os.environ, **variables, "PYTHONPATH": str(BENCHMARKS)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.receive()

    def run(self, call: Call) -> tuple[float, Tensor]:
        save_file(dict(zip(CALL_NAMES, call, strict=True)), self.folder / "call")
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin
        try:
            self.process.stdin.write(b"call\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise BrokenError(self.ending()) from None
        seconds = self.receive()["seconds"]
        return seconds, load_file(self.folder / "out")["out"].clone()  # the file is written anew

    def receive(self) -> dict[str, Any]:
        """Return the worker's answer and stop it."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], PATIENCE_SECONDS)[0]:
            self.close()
            raise BrokenError(f"gave no answer in {PATIENCE_SECONDS} seconds")
        line = self.process.stdout.readline()
        if not line:
            raise BrokenError(self.ending())
        answer = json.loads(line)
        if "absent" in answer:
            self.close()
            raise AbsentError(answer["absent"])
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def ending(self) -> str:
        """Say how the process ended: by which signal, or with what last words."""
        code = self.process.wait()
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        words = self.log.read_text(errors="replace").strip().splitlines()
        return f"its process ended with code {code}: {words[-1] if words else 'no message'}"

    def close(self) -> None:
        self.process.kill()  # also when stopped
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
