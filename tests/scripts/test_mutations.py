"""The mutants that `make mutants` plants: which there are, that a seed decides, and that text stays text."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "mutants" / "mutations.py"


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "mutants"),
    [
        ("x = a + b", {"x = ((a) - (b))"}),
        ("x = a < b", {"x = (a <= b)"}),
        ("x = a and not b", {"x = ((a) or (not b))", "x = a and (b)"}),
        ("x = 3", {"x = 4"}),
        ("x = True", {"x = False"}),
        ("x = min(a)", {"x = max(a)"}),
        ("call(a)", {"pass"}),
        ("if a: b.c = d", {"if (False): b.c = d", "if (True): b.c = d"}),
        ("raise E(f'{a + 1:3} + 1')", {"pass"}),
        ("x: int | None = a", set()),
        ("assert a == 3, b + 1", set()),
        ('"a + b"', set()),
    ],
)
def test_each_change_alone(mutations: ModuleType, line: str, mutants: set[str]) -> None:
    source = f"é = 'é'\n{line}\n".encode()
    found = mutations.mutants_of("f.py", source)
    assert {mutant.apply(source).decode().splitlines()[1] for mutant in found} == mutants


def test_a_seed_decides(mutations: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("\n".join(f"x{number} = {number}" for number in range(50)))
    first = mutations.sample(tmp_path, package, 10, 0)
    assert first == mutations.sample(tmp_path, package, 10, 0)
    assert first != mutations.sample(tmp_path, package, 10, 1)
    assert len(set(first)) == 10


def test_code_of_an_import_is_told_from_that_of_a_function(mutations: ModuleType) -> None:
    """All of a file's tests meet what runs when it is imported, a default as well."""
    source = b"A = 1\ndef f(a=2):\n    return g(\n        3,\n    )\n"
    lines = {mutant.text: mutant.lines for mutant in mutations.mutants_of("f.py", source)}
    assert lines == {"2": None, "3": None, "4": (4, 3), "return None": (3, 3)}
