"""The command line as a user meets it: quick help, one-line errors, exit codes."""

import subprocess
import sys

import pytest

from moe4 import __version__
from moe4.cli.app import COMMANDS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from moe4.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_without_loading_torch(command: str) -> None:
    program = (
        "import sys\n"
        "from moe4.cli.app import app\n"
        f"try: app([{command!r}, '--help'])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'numpy', 'lm_eval', 'openai'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    usage, *text = result.stdout.split("\n\n")
    assert usage.split()[:3] == ["Usage:", "-c", command]
    assert text[0].strip().endswith("."), "what it does comes first"


def test_version() -> None:
    assert run("--version").stdout == f"moe4 {__version__}\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    result = run("quantise")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
