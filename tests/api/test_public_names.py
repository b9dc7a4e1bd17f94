"""What `import moe4` offers, and what it costs."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import moe4
from moe4.cli.app import COMMANDS
from moe4.errors import Moe4Error

NAMES = [
    "Calibration",
    "Gptq",
    "Progress",
    "Recipe",
    "Report",
    "__version__",
    "card",
    "chat",
    "check_answers",
    "compare",
    "coverage",
    "deploy",
    "doctor",
    "errors",
    "eval",
    "find_ranks",
    "fit",
    "lint",
    "list_uploads",
    "load_report",
    "own_process",
    "plan",
    "power",
    "probe",
    "probe_script",
    "prove",
    "push",
    "quantize",
    "report",
    "resolve_recipe",
    "serve",
    "serve_command",
    "smoke",
    "toolcheck",
    "tune",
    "verify",
]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(moe4, name))]


def test_the_public_names_are_these() -> None:
    assert sorted(moe4.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(moe4))
    with pytest.raises(AttributeError, match="module 'moe4' has no attribute 'quantise'"):
        moe4.quantise  # type: ignore[attr-defined]  # noqa: B018


def test_there_is_a_function_for_every_command() -> None:
    assert set(COMMANDS) <= set(FUNCTIONS)


def run(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_importing_takes_milliseconds_and_little_else() -> None:
    """The time is that of the best of five, in a process that has none of it in memory."""
    text = run(
        "import sys, time\n"
        "began = time.perf_counter()\n"
        "import moe4\n"
        "took = time.perf_counter() - began\n"
        "import json\n"
        "print(json.dumps([took, sorted(sys.modules)]))\n"
    )
    seconds, modules = json.loads(text)
    assert not {"torch", "vllm", "numpy", "transformers", "pydantic", "rich", "typer"} & set(modules)
    assert seconds < 0.2


def test_looking_at_every_name_imports_neither_torch_nor_vllm() -> None:
    names = "[getattr(moe4, name) for name in moe4.__all__]"
    text = run(f"import moe4, sys; {names}; print({{'torch', 'vllm', 'numpy'}} & set(sys.modules))")
    assert text == "set()\n"


MODULES = {
    "deploy": "smoke",
    "power": "search",
    "probe": "check",
    "prove": "run",
    "quantize": "planning",
    "serve": "extra",
    "tune": "scales",
    "verify": "decoding",
}


@pytest.mark.parametrize("package", MODULES)
def test_a_function_stays_one_beside_the_package_of_its_name(package: str) -> None:
    """However the package and what is in it are imported, before or after."""
    inner = MODULES[package]
    text = run(
        f"import importlib\nimportlib.import_module('moe4.{package}')\nimport moe4\n"
        f"import moe4.{package}.{inner}\nimport moe4.{package}.{inner} as inner\nfrom moe4 import {package}\n"
        f"print(callable({package}), moe4.{package} is {package}, moe4.{package}.__module__, inner.__name__)"
    )
    assert text.startswith("True True moe4.api.")
    assert text.endswith(f" moe4.{package}.{inner}\n")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_typed_and_says_what_it_does(name: str) -> None:
    function = getattr(moe4, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty
    lines = inspect.getdoc(function).splitlines()
    assert lines[0].endswith((".", ";", ",", "answers.")) or len(lines) > 1


def test_types_come_with_the_package() -> None:
    assert (Path(moe4.__file__).parent / "py.typed").is_file()


def test_every_error_is_one_of_the_tree() -> None:
    errors = [item for item in vars(moe4.errors).values() if inspect.isclass(item)]
    assert len(errors) > 15
    assert all(issubclass(error, Moe4Error) for error in errors)
