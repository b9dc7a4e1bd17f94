"""Ask a server for a release's expected answers: the check of check.py, as moe4's commands use it."""

import os
from collections.abc import Callable
from pathlib import Path

from moe4.errors import ProbeError
from moe4.probe import check
from moe4.probe.check import describe, describe_shortly
from moe4.probe.form import PROBE_NAME, read_probe

__all__ = [
    "ask_server",
    "check_when_ready",
    "describe",
    "describe_shortly",
    "find_probe",
    "script_text",
]

READY_SECONDS = 30.0  # a server on a CPU may compute a few hundred tokens a second
OnProgress = Callable[[int, int], None]


def ask_server(
    release: Path,
    url: str,
    *,
    model: str | None = None,
    timeout: float = 120.0,
    verify: bool = True,
    key: str | None = None,
    seconds: float | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> check.ServerVerdict:
    """Return the verdict on the server at `url`, as `check.judge` makes it.

    release: a folder with moe4-probe.json, or that file. key: VLLM_API_KEY's if None. seconds: no question is
    asked later. Raises ProbeError if the file cannot be used or the server cannot be asked.
    """
    path = find_probe(release)
    try:
        server = check.Server(
            url, key=key or os.environ.get("VLLM_API_KEY"), timeout=timeout, insecure=not verify
        )
        return check.check(check.read_expected(str(path)), server, model, on_progress, seconds)
    except check.CheckError as error:
        raise ProbeError(str(error)) from None


def find_probe(release: Path) -> Path:
    """Return the file of expected answers in a folder, or the file given. Raises ProbeError if it is bad."""
    path = release / PROBE_NAME if release.is_dir() else release
    read_probe(path)  # it names more of what can be wrong than the check, which must be small
    return path


def check_when_ready(
    release: Path, url: str, model: str, *, key: str | None, on_progress: OnProgress
) -> tuple[bool | None, str]:
    """Check a server that has just started; return whether its answers are right, and what to say of it.

    None for a release without expected answers, and for a server that cannot be asked.
    """
    if not (release / PROBE_NAME).is_file():
        return None, f"moe4: {release} holds no expected answers to check; moe4 probe {release} makes them"
    try:
        result = ask_server(
            release, url, model=model, key=key, seconds=READY_SECONDS, on_progress=on_progress
        )
    except ProbeError as error:
        return None, f"moe4: the answers were not checked: {error}"
    return bool(result["ok"]), describe(result)


def script_text() -> str:
    """Return the check as a program of its own."""
    return Path(check.__file__).read_text(encoding="utf-8")
