"""The command line as a user meets it: quick help, one-line errors, exit codes."""

import subprocess
import sys

import pytest
from typer.core import TyperGroup, TyperOption
from typer.main import get_command
from typer.testing import CliRunner

from moe4 import __version__
from moe4.cli.app import COMMANDS, app


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


def empty_values() -> list[tuple[str, str]]:
    """Every argument and option of every command that takes a value."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return [
        (name, parameter.opts[-1] if isinstance(parameter, TyperOption) else "")
        for name, command in group.commands.items()
        for parameter in command.params
        if not getattr(parameter, "is_flag", False)
    ]


@pytest.mark.parametrize(("command", "option"), empty_values())
@pytest.mark.parametrize("joined", [True, False])
def test_an_empty_value_is_an_error(command: str, option: str, joined: bool) -> None:
    words = ([f"{option}="] if joined and option.startswith("--") else [option, ""]) if option else [""]
    result = CliRunner().invoke(app, [command, *words])
    assert result.exit_code == 2
    assert "it is empty; give a value" in result.output
    assert (option or "Invalid value for '") in result.output
