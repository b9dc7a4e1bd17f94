"""A message names an argument as its reader writes it: a keyword in Python, an option on the command line."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from model_fixtures import REFERENCE_MODEL, REPOSITORY
from typer.main import get_command

import moe4
from moe4.arguments import argument, named_as_options, option
from moe4.cli.app import app

PACKAGE = REPOSITORY / "src" / "moe4"
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
OF_OTHERS = (
    "cli",
    "deploy/lint",
    "deploy/manifests",
    "vllm_plugin",
    "deploy/dashboard.py",
    "probe/check.py",
    "publish/words.py",
)
"""Those that write for the command line, or of vLLM's, podman's and kubectl's options."""


def test_a_keyword_and_an_option() -> None:
    assert argument("calibration", "c.jsonl") == 'calibration="c.jsonl"'
    assert argument("num_gpus", 8) == "num_gpus=8"
    assert argument("disk", 0.5) == "disk=0.5"
    assert argument("resume", True) == "resume=True"
    assert argument("resume") == "resume"
    with named_as_options():
        assert argument("calibration", Path("c.jsonl")) == "--calibration c.jsonl"
        assert argument("max_model_len", 4096) == "--max-model-len 4096"
        assert argument("resume", True) == "--resume"
        assert argument("tasks") == "--task"
    assert argument("resume") == "resume"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) & set(moe4.__all__)))
def test_options_are_named_as_the_command_has_them(name: str) -> None:
    keywords = inspect.signature(getattr(moe4, name)).parameters
    given = {found.name: found.opts for found in COMMANDS[name].params if found.param_type_name == "option"}
    assert {
        keyword for keyword in keywords if keyword in given and option(keyword) not in given[keyword]
    } == set()


def test_messages_name_arguments_not_options() -> None:
    """Options may appear in a whole command, `moe4 NAME ...`, which a caller can run as well."""
    options = {text for command in COMMANDS.values() for found in command.params for text in found.opts}
    wrong = [
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not str(path.relative_to(PACKAGE)).startswith(OF_OTHERS)
        for text in sentences(path)
        if set(re.findall(r"--[a-z][a-z-]+", text)) & options and "moe4 " not in text
    ]
    assert wrong == []


def sentences(path: Path) -> Iterator[str]:
    """Yield the strings of a module with a space in them that are not docstrings; an f-string as one."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [
            part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if id(node) not in inner and " " in (text := "".join(texts)):
            yield text


CASES: list[tuple[Callable[[], object], list[str], str, str]] = [
    (
        lambda: moe4.quantize(REFERENCE_MODEL, "never-made"),
        ["quantize", str(REFERENCE_MODEL), "never-made"],
        'give calibration="FILE.jsonl"',
        "give --calibration FILE.jsonl",
    ),
    (
        lambda: moe4.fit(REFERENCE_MODEL, gpu="h100", gpus=0),
        ["fit", str(REFERENCE_MODEL), "--gpu", "h100", "--gpus", "0"],
        "gpus=0 is not at least 1",
        "--gpus 0 is not at least 1",
    ),
    (
        lambda: moe4.resolve_recipe(sequence_tokens=0),
        ["plan", str(REFERENCE_MODEL), "--sequence-length", "0"],
        "max_sequence_tokens must be at least 1",
        "--sequence-length must be at least 1",
    ),
    (
        lambda: moe4.compare(REFERENCE_MODEL, REFERENCE_MODEL, revision=""),
        ["compare", str(REFERENCE_MODEL), str(REFERENCE_MODEL), "--data", "none.jsonl", "--max-tokens", "2"],
        "compare(): revision is empty",
        "none.jsonl",
    ),
]


@pytest.mark.parametrize(("call", "words", "in_python", "in_a_shell"), CASES)
def test_one_error_two_readers(
    call: Callable[[], object], words: list[str], in_python: str, in_a_shell: str, tmp_path: Path
) -> None:
    with pytest.raises(moe4.errors.Moe4Error) as caught:
        call()
    assert in_python in str(caught.value)
    done = subprocess.run(
        [sys.executable, "-m", "moe4", *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert in_a_shell in done.stderr
