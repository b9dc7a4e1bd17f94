"""The command line as a user meets it: quick help, one-line errors, exit codes."""

import ast
import importlib
import inspect
import logging
import os
import pty
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from test_layering import imported
from typer.core import TyperGroup, TyperOption
from typer.main import get_command
from typer.testing import CliRunner

import moe4
from moe4 import __version__
from moe4.cli.app import COMMANDS, app
from moe4.errors import DeployError, OutputError


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
    assert "\nMessages:\n  -q, --quiet " in result.stdout
    assert f"\nExamples:\n  moe4 {command}" in result.stdout


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str) -> None:
    assert run(option).stdout == f"moe4 {__version__}\n"


def commands() -> dict[str, Any]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return dict(group.commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_one(command: str) -> None:
    """Its words are arguments and options that the command has, with values of their kinds."""
    module = importlib.import_module(f"moe4.cli.{COMMANDS[command]}")
    assert module.EXAMPLES
    for example in module.EXAMPLES:
        words = shlex.split(example.partition(" > ")[0])
        words = words[words.index("moe4") + 1 :]
        assert words[0] == command
        with commands()[command].make_context(f"moe4 {command}", words[1:]) as context:
            assert command == "serve" or not context.args


@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_is_help(command: str) -> None:
    short, long = (CliRunner().invoke(app, [command, option]) for option in ("-h", "--help"))
    assert (short.exit_code, short.output) == (0, long.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_is_long(command: str) -> None:
    module = importlib.import_module(f"moe4.cli.{COMMANDS[command]}")
    for _, function in inspect.getmembers(module, inspect.isfunction):
        assert len(inspect.getsource(function).splitlines()) <= 60, function.__name__


def test_quiet_and_verbose_and_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lint(*_: object, **__: object) -> None:
        logging.getLogger("moe4").debug("seen with -v")
        logging.getLogger("moe4").info("seen")
        logging.getLogger("moe4").warning("always\nseen")
        raise DeployError("what is wrong")

    monkeypatch.setattr("moe4.lint", lint, raising=False)
    log = tmp_path / "log"
    for options, expected in (
        ([], "seen\nalways\nseen\n"),
        (["-q"], "always\nseen\n"),
        (["-v"], "seen with -v\nseen\nalways\nseen\nerror: what is wrong\nmoe4 lint: 0.0 s\n"),
    ):
        result = CliRunner().invoke(app, ["lint", "x.yaml", *options, "--log-file", str(log)])
        assert result.stderr == expected
        assert str(result.exception) == "what is wrong"
    lines = log.read_text().splitlines()
    assert len(lines) == 15
    assert all(line[:4].isdigit() for line in lines)
    assert lines[2].endswith(r"WARNING always\nseen")
    assert "error: what is wrong" in lines[3]
    assert not [
        handler for handler in logging.getLogger("moe4").handlers if type(handler).__name__ == "_Lines"
    ]


def test_messages_options_that_make_no_sense(tmp_path: Path) -> None:
    both = CliRunner().invoke(app, ["doctor", "-q", "-v"])
    assert both.exit_code == 2
    assert "--quiet and --verbose contradict each other" in both.output
    for place in (tmp_path, tmp_path / "none" / "log"):
        result = CliRunner().invoke(app, ["doctor", "--log-file", str(place)])
        assert isinstance(result.exception, OutputError)


def test_vllms_short_options_of_several_letters_stay_whole() -> None:
    words = ["OUT", "-dph", "2", "-tp", "4", "-v", "-dpn=1", "-O3", "--max-num-seqs", "3"]
    with commands()["serve"].make_context("moe4 serve", words) as context:
        assert context.args == ["-dph", "2", "-dpn=1", "-O3", "--max-num-seqs", "3"]
        assert (context.params["tensor_parallel_size"], context.params["verbose"]) == (4, 1)


def on_terminal(program: str, **environment: str) -> str:
    """Run a program with its stderr on a terminal; return what that shows."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", **environment},
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # it has closed the terminal
                break
            if not piece:
                break
            shown += piece
        process.wait()
    os.close(leader)
    return shown.decode()


SLOW = """
import moe4, sys, time
from moe4.cli.main import main
from moe4.progress import Progress
def verify(*_, on_progress, **__):
    time.sleep(0.3)
    on_progress(Progress(stage="reading \x1b[31m[red]", done=0.5, seconds_left=65))
    time.sleep(0.3)
    raise moe4.errors.CheckpointError("what is wrong")
moe4.verify = verify
sys.argv = ["moe4", "verify", "x", *OPTIONS]
main()
"""


def test_something_moves_on_a_terminal_and_nowhere_else() -> None:
    program = SLOW.replace("OPTIONS", "[]")
    shown = on_terminal(program)
    assert "checking" in shown
    assert "50%" in shown
    assert "0:01:05 left" in shown
    assert r"reading \x1b[31m[red]" in shown
    assert shown.rstrip().endswith("moe4: error: what is wrong")
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert piped.stderr == "moe4: error: what is wrong\n"
    assert on_terminal(SLOW.replace("OPTIONS", "['-q']")) == "moe4: error: what is wrong\r\n"


def test_no_color_is_heeded() -> None:
    program = SLOW.replace("OPTIONS", "[]")
    colours = [f"\x1b[{number}" for number in range(31, 38)]
    assert any(colour in on_terminal(program) for colour in colours)
    assert not any(colour in on_terminal(program, NO_COLOR="1") for colour in colours)


def test_the_shell_can_complete() -> None:
    environment = {
        **os.environ,
        "_MOE4_COMPLETE": "complete_bash",
        "COMP_WORDS": "moe4 qu",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-c", "from moe4.cli.main import main; main()"]
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.split() == ["quantize"]
    assert time.monotonic() - began < 30
    assert result.stderr == ""


def test_the_command_line_calls_the_api_and_nothing_else() -> None:
    """Beside it only what names errors, writes text and files, and tells sizes."""
    allowed = tuple(
        f"moe4.{name}"
        for name in ("api", "arguments", "cli", "errors", "escape", "extras", "files", "progress", "units")
    )
    types_only = "if TYPE_CHECKING:"
    for file in (Path(moe4.__file__).parent / "cli").rglob("*.py"):
        text = file.read_text()
        if types_only in text:
            head, _, rest = text.partition(types_only)
            text = head + rest[rest.index("\n\n") :]
        names = {name for name in imported(ast.parse(text)) if name.startswith("moe4.")}
        wrong = [
            name for name in names if not name.startswith(allowed) and name.split(".")[1] not in moe4.__all__
        ]
        assert not wrong, f"{file.name}: {wrong}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_parameter_is_declared_once_and_handed_on_once(command: str) -> None:
    """In the command, and in the function of the API that it calls: no room meets it a third time."""
    module = importlib.import_module(f"moe4.cli.{COMMANDS[command]}")
    for function in (module.command, inspect.unwrap(getattr(moe4, command))):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(tree, ast.FunctionDef)
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        if "locals" in calls:  # all of them go on at once
            continue
        handed_on = [
            keyword.value.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Name)
        ]
        for name in inspect.signature(function).parameters:
            assert handed_on.count(name) <= 1, f"{function.__module__}: {name}"


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
        if not getattr(parameter, "is_flag", False) and not getattr(parameter, "count", False)
    ]


@pytest.mark.parametrize(("command", "option"), empty_values())
@pytest.mark.parametrize("joined", [True, False])
def test_an_empty_value_is_an_error(command: str, option: str, joined: bool) -> None:
    words = ([f"{option}="] if joined and option.startswith("--") else [option, ""]) if option else [""]
    result = CliRunner().invoke(app, [command, *words])
    assert result.exit_code == 2
    assert "it is empty; give a value" in result.output
    assert (option or "Invalid value for '") in result.output
