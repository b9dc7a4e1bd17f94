"""What moe4 touches of vLLM, transformers, lm-eval and torch beyond their public names (private_parts.py)."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest
from private_parts import PARTS, PUBLIC
from vllm_forks import VllmForks

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = ("vllm", "transformers", "lm_eval", "torch")
RESOLVE = """
import importlib, json, sys
from moe4.vllm_facts.distribution import under_its_own_name
moved = []
with under_its_own_name():
    for part in json.loads(sys.argv[1]):
        module, _, path = part.partition(":")
        try:
            found = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            moved.append(f"{part}: {error}")
print(json.dumps(moved))
"""


def touched() -> set[str]:
    """Return what the source imports of the libraries' submodules, as `module:name`."""
    found = set()
    for file in (REPOSITORY / "src" / "moe4").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module not in PUBLIC:
                library, dot, _ = node.module.partition(".")
                if library in LIBRARIES and dot:
                    found |= {f"{node.module}:{alias.name}" for alias in node.names}
    return found


def test_the_list_has_all_that_the_source_imports() -> None:
    assert touched() - set(PARTS) == set()


@pytest.mark.parametrize("part", sorted(set(PARTS) - touched()))
def test_what_is_not_imported_by_name_is_named_in_the_source(part: str) -> None:
    """It is found by its name in text, as a module that is imported so or an attribute that is replaced."""
    name = part.rpartition(":")[2].rpartition(".")[2]
    module = part.partition(":")[0]
    sources = [file.read_text() for file in (REPOSITORY / "src" / "moe4").rglob("*.py")]
    assert any(name in text or module in text for text in sources)


@pytest.mark.parametrize("test", sorted(set(PARTS.values())))
def test_each_is_noticed_by_a_test_that_exists(test: str) -> None:
    file, _, name = test.partition("::")
    text = (REPOSITORY / file).read_text()
    assert not name or f"def {name}(" in text


@pytest.mark.vllm
def test_all_are_where_the_list_says(vllm_forks: VllmForks) -> None:
    """In a process of its own: it imports vLLM and the harness."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    parts = [part for part in PARTS if part.partition(":")[0].partition(".")[0] not in missing]
    done = vllm_forks.program(RESOLVE, json.dumps(parts))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
