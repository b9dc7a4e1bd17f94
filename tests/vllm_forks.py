"""Run generate.py in a process of its own, as vLLM wants it, and read its answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

GENERATE = Path(__file__).with_name("generate.py")
Answers = list[dict[str, Any]]


def run_engines(
    requests: list[dict[str, Any]], work: Path, *, environment: dict[str, str] | None = None
) -> list[tuple[Answers, str]]:
    """Return vLLM's answers to each request (see generate.py) and its part of the log.

    `environment` adds variables. Each engine has its core in its own process, unless that says otherwise.
    """
    work.mkdir(parents=True, exist_ok=True)
    request_file, answer_file = work / "requests.json", work / "answers.json"
    request_file.write_text(json.dumps(requests, default=str))
    result = subprocess.run(
        [sys.executable, str(GENERATE), str(request_file), str(answer_file)],
        env={
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    logs = result.stdout.split("begin request\n")[-len(requests) :]
    return list(zip(json.loads(answer_file.read_text()), logs, strict=True))
