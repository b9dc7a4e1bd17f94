"""Imports between moe4's packages run one way (docs/architecture.md)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "moe4"

# A package may import packages of a lower rank, and itself.
RANKS = {
    "errors": 0,
    "escape": 0,
    "strict_json": 0,
    "schema": 1,
    "environment": 1,
    "bounded": 1,
    "recipe": 2,
    "config": 2,
    "checkpoint": 3,
    "kernels": 4,
    "gptq": 4,
    "model": 4,
    "calibration": 4,
    "forward": 5,
    "probe": 6,  # it runs a model forward, and quantize has it done on the way
    "quantize": 7,
    "serve": 7,
    "evaluate": 7,
    "vllm_plugin": 7,
    "deploy": 8,  # it knows what serve would start
    "publish": 9,  # it shows how a release is deployed
    "prove": 10,
    "cli": 11,
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
