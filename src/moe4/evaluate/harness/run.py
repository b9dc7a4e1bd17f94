"""Evaluate models one after another, each in a process of its own, and show how far they are."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO

from moe4.arguments import are_named_as_options
from moe4.errors import EvaluationError
from moe4.evaluate.harness.request import EvaluationRequest
from moe4.evaluate.harness.results import Score, score
from moe4.evaluate.harness.samples import Sample, TaskSamples
from moe4.evaluate.server import api_key
from moe4.progress import OnProgress, Progress, ignore
from moe4.strict_json import JsonObject

STOP_SECONDS = 20
# A progress bar of tqdm, which ends in a carriage return: name, percent, bar, counts, time gone and left.
PROGRESS = re.compile(rb"(?:([^\r\n:|]*): *)?(\d+)%\|[^\r\n]*\|")


def evaluate_model(request: EvaluationRequest, on_progress: OnProgress = ignore) -> dict[str, Score]:
    """Return a model's scores by task. Its bars become progress, all that it prints goes to a log.

    Raises EvaluationError, with the place of the log, if the harness or vLLM fails.
    """
    with tempfile.TemporaryDirectory(prefix="moe4-eval-") as folder:
        paths = Path(folder, "request.json"), Path(folder, "answer.json")
        paths[0].write_text(json.dumps(asdict(request)), encoding="utf-8")
        log_descriptor, log = tempfile.mkstemp(prefix="moe4-eval-", suffix=".log")
        with os.fdopen(log_descriptor, "wb") as log_file:
            process = subprocess.Popen(
                _command(*paths),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
            try:
                assert process.stdout is not None
                _pass_on(process.stdout, log_file, request.model, on_progress)
                code = process.wait()
            except BaseException:
                _stop(process)
                raise
        if code or not paths[1].is_file():
            raise EvaluationError(f"evaluating {request.model} failed: {_last_words(log)}; see {log}")
        Path(log).unlink()
        answer = json.loads(paths[1].read_text(encoding="utf-8"))
    if "error" in answer:
        raise EvaluationError(answer["error"])
    return {task: score(_read_answer(found)) for task, found in answer["tasks"].items()}


def _read_answer(found: JsonObject) -> TaskSamples:
    return TaskSamples(**found | {"samples": tuple(Sample(**sample) for sample in found["samples"])})


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker as Ctrl-C does, so that vLLM ends its own processes; kill it if that takes too long."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _command(request: Path, answer: Path) -> list[str]:
    """Return the worker's command; its messages name arguments as this process does."""
    names = ["--name-options"] if are_named_as_options() else []
    return [sys.executable, "-m", "moe4.evaluate.harness.worker", *names, str(request), str(answer)]


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    key = api_key()
    if key is not None:
        environment["OPENAI_API_KEY"] = key
    return environment


def _pass_on(stream: IO[bytes], log: IO[bytes], model: str, on_progress: OnProgress) -> None:
    """Copy everything to the log, and tell what the bars in it say."""
    on_progress(Progress(stage=f"evaluating {model}"))
    while chunk := os.read(stream.fileno(), 65536):
        log.write(chunk)
        bars = PROGRESS.findall(chunk)
        if bars:
            name, share = bars[-1]
            stage = name.decode("utf-8", "replace").strip() or "evaluating"
            on_progress(Progress(stage=f"{stage}, {model}", done=min(100, int(share)) / 100))


def _last_words(log: str) -> str:
    """Return the last line of the log that names an error, or simply its last."""
    lines = [line.strip() for line in Path(log).read_text(encoding="utf-8", errors="replace").splitlines()]
    named = [line for line in lines if re.search(r"(Error|Exception)\b.*: ", line)]
    return (named or [line for line in lines if line] or ["it printed nothing"])[-1][:300]
