"""What happens to a command whatever happens to it: one line, an exit code, no traceback."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import REFERENCE_MODEL

MODULE = [sys.executable, "-m", "moe4"]
FIT = ["fit", str(REFERENCE_MODEL)]


def run(*arguments: str, program: list[str] = MODULE, **options: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([*program, *arguments], text=True, check=False, **{**streams, **options})


def raising(
    statement: str, module: str = "moe4.kernels.inspection", name: str = "inspect_machine"
) -> list[str]:
    """A moe4 in which a function that a command calls, `doctor` if no other is named, runs a statement."""
    program = (
        f"import {module} as module\n"
        "def function(*arguments):\n"
        f"    {statement}\n"
        f"module.{name} = function\n"
        "from moe4.cli.main import main\n"
        "main()\n"
    )
    return [sys.executable, "-c", program]


def only_line(result: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    return line


def test_a_fault_is_one_line_that_says_how_to_report_it(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = run("doctor", program=raising("raise ValueError('odd\\nthing')"), env=environment)
    assert result.returncode == 70
    line = only_line(result)
    (saved,) = tmp_path.iterdir()
    assert line.startswith("moe4: fault: ValueError: odd thing in moe4/serve/doctor.py:")
    assert f"report it with {saved}." in line
    assert "Traceback" in saved.read_text()
    assert "['moe4', 'doctor']" in saved.read_text()


def test_secrets_on_the_command_line_are_not_saved(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    program = raising("1 / 0", "moe4.serve.model", "read_served_model")
    run("serve", "x", "--api-key", "alpha", "--hf-token=beta", program=program, env=environment)
    (saved,) = tmp_path.iterdir()
    text = saved.read_text()
    assert "ZeroDivisionError" in text
    assert "alpha" not in text
    assert "beta" not in text
    assert "['moe4', 'serve', 'x', '--api-key', '***', '--hf-token=***']" in text


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise MemoryError", "MemoryError: out of memory"),
        ("return function()", "RecursionError: something is nested too deeply"),
        ("raise OSError(22, 'Invalid argument')", "OSError: [Errno 22] Invalid argument"),
    ],
)
def test_faults_by_kind(statement: str, words: str, tmp_path: Path) -> None:
    result = run("doctor", program=raising(statement), env={**os.environ, "TMPDIR": str(tmp_path)})
    assert result.returncode == 70
    assert words in only_line(result)


@pytest.mark.parametrize("name", ["ENOSPC", "EACCES", "EROFS", "ENOENT", "EMFILE", "EIO"])
def test_what_the_machine_refuses_is_bad_input(name: str) -> None:
    number = getattr(errno, name)
    statement = f"raise OSError({number}, {os.strerror(number)!r}, '/a/path')"
    result = run("doctor", program=raising(statement))
    assert result.returncode == 2
    assert only_line(result).startswith(f"moe4: error: /a/path: {os.strerror(number)}; ")


def test_a_traceback_is_printed_when_asked_for(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "MOE4_TRACEBACK": "1"}
    assert "Traceback" in run("doctor", program=raising("1 / 0"), env=environment).stderr
    assert "Traceback" in run("lint", "none.yaml", cwd=tmp_path, env=environment).stderr


def test_a_message_stays_on_its_line(tmp_path: Path) -> None:
    result = run("lint", str(tmp_path / "a\n\x1b[31mb.yaml"))
    assert result.returncode == 2
    assert r"a\n\x1b[31mb.yaml" in only_line(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantise"], "No such command 'quantise'"),
        (["plan"], "Missing argument 'SOURCE'; see moe4 plan --help"),
        (["fit", "x", "--concurrency", "many"], "Invalid value for '--concurrency'"),
        (["fit", "x", "--a\nb"], r"No such option: --a\x0ab"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert words in only_line(result)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [FIT, [*FIT, "--json"], ["--version"], ["fit", "--help"]])
def test_full_standard_output(arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        result = run(*arguments, stdout=full, env=environment)
    assert result.returncode == 2
    assert only_line(result).endswith("standard output cannot be written: No space left on device")


@pytest.mark.parametrize("redirection", [">&-", "1</dev/null"])
def test_standard_output_that_is_closed_or_not_for_writing(redirection: str) -> None:
    result = run(*FIT, program=["bash", "-c", f'"$@" {redirection}', "bash", *MODULE])
    assert result.returncode == 2
    assert "standard output cannot be written: Bad file descriptor" in only_line(result)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_without_standard_error_a_command_does_its_work(redirection: str) -> None:
    program = ["bash", "-c", f'"$@" {redirection}', "bash", *MODULE]
    assert run(*FIT, "--json", program=program).stdout == run(*FIT, "--json").stdout
    assert run("lint", "/none.yaml", program=program).returncode == 2


@pytest.mark.parametrize("arguments", [FIT, [*FIT, "--json"], ["--help"]])
def test_a_reader_that_has_left_is_told_nothing(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = run(*arguments, stdout=writing)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    program = ["bash", "-c", 'rmdir "$PWD" && "$@"', "bash", *MODULE]
    result = run("plan", str(REFERENCE_MODEL), program=program, cwd=folder)
    assert result.returncode == 2
    assert only_line(result) == "moe4: error: the working directory no longer exists; change to one that does"


def interrupted(number: int, seconds: float, before: Callable[[], Any] | None = None) -> tuple[int, str]:
    process = subprocess.Popen(
        [*MODULE, "plan", str(REFERENCE_MODEL), "--method", "rtn", "--no-time"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    time.sleep(seconds)
    process.send_signal(number)
    _, messages = process.communicate()
    return process.returncode, messages


@pytest.mark.parametrize("seconds", [0.15, 0.3, 0.5, 0.8, 1.2])
def test_ctrl_c_in_the_first_second(seconds: float) -> None:
    """Libraries are being imported; Python itself needs the first tenth of a second."""
    code, messages = interrupted(signal.SIGINT, seconds)
    assert code in (130, -signal.SIGINT)
    assert messages == "moe4: interrupted\n"


def test_a_signal_to_end_is_obeyed() -> None:
    assert interrupted(signal.SIGTERM, 0.5) == (-signal.SIGTERM, "")


def test_a_job_in_the_background_ignores_ctrl_c() -> None:
    ignoring = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    assert interrupted(signal.SIGINT, 0.3, ignoring)[0] == 0
