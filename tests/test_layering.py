"""Imports between moe4's packages run one way (docs/architecture.md)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "moe4"

# A package may import packages of a lower rank, and itself.
RANKS = {
    "errors": 0,
    "escape": 0,
    "recipe": 1,
    "checkpoint": 2,
    "kernels": 3,
    "gptq": 3,
    "model": 3,
    "calibration": 3,
    "forward": 4,
    "probe": 5,  # it runs a model forward, and quantize has it done on the way
    "quantize": 6,
    "serve": 6,
    "evaluate": 6,
    "vllm_plugin": 6,
    "deploy": 7,  # it knows what serve would start
    "publish": 8,  # it shows how a release is deployed
    "prove": 9,
    "cli": 10,
}


def imported_packages(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("moe4."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("moe4."))
    return names


def test_imports_run_one_way() -> None:
    wrong = []
    for file in sorted(SOURCE.rglob("*.py")):
        package = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if package in ("__init__", "__main__"):
            continue
        for other in imported_packages(file) - {package}:
            if RANKS[other] >= RANKS[package]:
                wrong.append(f"{file.relative_to(SOURCE)} imports moe4.{other}")
    assert not wrong, "\n".join(wrong)


def test_only_the_plugin_imports_vllm_internals() -> None:
    """`vllm.*` submodules are internal; elsewhere only the public top-level names may be used."""
    wrong = []
    for file in sorted(SOURCE.rglob("*.py")):
        if file.relative_to(SOURCE).parts[0] == "vllm_plugin":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vllm."):
                wrong.append(f"{file.relative_to(SOURCE)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)
