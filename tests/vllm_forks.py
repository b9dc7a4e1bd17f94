"""Run vLLM in processes of its own, as it wants it, without importing it in each (vllm_fork_server.py)."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("vllm_fork_server.py")
Answers = list[dict[str, Any]]


class VllmForks:
    """Forked children of a process that has vLLM imported, but nothing of moe4's."""

    def __enter__(self) -> "VllmForks":
        self._folder = tempfile.TemporaryDirectory(prefix="moe4-vllm-")
        self._count = 0
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def engine(
        self, generate: dict[str, Any], environment: dict[str, str] | None = None
    ) -> tuple[Answers, str]:
        """Return an offline engine's answers and its log.

        `environment` adds variables. The engine has its core in its own process, unless that says otherwise.
        """
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        answers = Path(self._folder.name) / f"{self._count}.answers"
        request = {"generate": generate, "answers": str(answers), "environment": own | (environment or {})}
        done = self._run(request)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return json.loads(answers.read_text()), done.stdout + done.stderr

    def program(
        self, source: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program as `python -c` would."""
        return self._run(
            {"program": textwrap.dedent(source), "arguments": arguments, "environment": environment or {}}
        )

    def _run(self, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = [Path(self._folder.name) / f"{self._count}.{name}" for name in ("out", "err")]
        self._count += 1
        named = dict(zip(("out", "err"), map(str, files), strict=True))
        request["environment"] = {**os.environ, **request["environment"]}
        print(json.dumps(request | named, default=str), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        assert reply, self._log.read_text()[-6000:]
        out, err = (file.read_text(errors="replace") for file in files)
        return subprocess.CompletedProcess(request.get("program", "generate"), int(reply), out, err)
