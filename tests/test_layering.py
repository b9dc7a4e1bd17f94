"""Hold moe4 to docs/architecture.md: who imports whom, which library is used where, how large a room is."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "moe4"
REFERENCE = REPOSITORY / "reference" / "k2tiny"
MOST_MODULES = 14

# From the ground up: a package may import packages of lower storeys, and itself.
STOREYS = (
    {"errors", "escape", "strict_json", "units"},
    {"progress"},
    {"schema", "environment", "files", "machine", "bounded", "reference"},
    {"recipe", "config"},
    {"checkpoint", "vllm_facts"},
    {"kernels", "gptq", "model", "calibration"},
    {"forward"},
    {"probe"},  # it runs a model forward, and quantize has it done on the way
    {"quantize", "serve", "evaluate"},
    {"verify", "vllm_plugin"},
    {"deploy"},  # it knows what serve would start
    {"publish"},  # it shows how a release is deployed
    {"prove"},
    {"api"},
    {"cli"},
)

# The same within a package, for its rooms and for modules that lie beside them.
ROOMS = {
    "quantize": (
        {"planning"},
        {"transfer"},
        {"reporting"},
        {"layer"},
        {"gpu"},
        {"run"},
        {"forecast"},
    ),
    "evaluate": (
        {"built_in", "server", "statistics", "result_files"},
        {"record"},
        {"harness"},
        {"comparison", "coverage", "toolcheck"},
        {"without_tasks"},
    ),
    "vllm_plugin": (
        {"cpu", "experts", "marlin", "rest"},
        {"loader"},
        {"config"},
        {"registration", "cli", "tool_parser"},
    ),
    "deploy": ({"sizing"}, {"manifests"}, {"lint", "dashboard", "smoke"}),
    "api": (
        {"refusals"},
        {"operation", "results", "processes"},
        {"making", "checking", "measuring", "publishing", "serving", "command_server", "sizing"},
        {"deploying", "linting"},
    ),
    "cli": (
        {"messages", "options", "streams", "fault"},
        {"command", "progress"},
        {"making", "measuring", "serving", "deploying"},
        {"app"},
        {"net"},
        {"main"},
    ),
}

# Where each library may be imported. A place is a package, a room of one, or a module.
LIBRARIES = {
    "compressed_tensors": {"verify", "vllm_plugin.config"},
    "datasets": {"evaluate.harness"},
    "httpx": {"deploy.smoke", "evaluate.toolcheck"},
    "huggingface_hub": {"deploy.sizing", "publish.push"},
    "jinja2": {"calibration.content_format", "publish.report_page"},
    "jsonschema": {"deploy.lint", "evaluate.toolcheck"},
    "k2tiny": {"reference"},
    "lm_eval": {"evaluate.harness"},
    "markupsafe": {"publish.report_page"},
    "numpy": {"calibration", "checkpoint", "evaluate", "vllm_plugin.loader"},
    "openai": {"serve.chat"},
    "pyarrow": {"calibration.parquet"},
    "pydantic": {
        "api",
        "schema",
        "recipe",
        "config",
        "checkpoint",
        "calibration",
        "probe.form",
        "quantize.run.kept_tokens",
        "evaluate",
        "deploy.lint",
    },
    "pydantic_core": {"api.operation", "schema", "recipe", "config", "calibration"},
    "referencing": {"evaluate.toolcheck"},
    "rich": {"api.sizing", "cli", "deploy.sizing"},
    "ruamel": {"deploy", "publish.card_file"},
    "safetensors": {"vllm_plugin.loader"},
    "torch": {
        "calibration",
        "checkpoint",
        "evaluate.comparison",
        "evaluate.coverage",
        "forward",
        "gptq",
        "kernels",
        "model",
        "probe.make",
        "probe.passes",
        "quantize",
        "verify",
        "vllm_plugin",
    },
    "tqdm": {"evaluate.harness"},
    "tiktoken": {"calibration.kimi_tokenizer"},
    "transformers": {"calibration.kimi_tokenizer", "calibration.tokenizer", "model", "verify.decoding"},
    "triton": {"gptq.gpu"},
    "typer": {"cli"},
    "vllm": {"vllm_plugin"},
    "yaml": {"deploy.lint", "serve.command"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield (dotted name below moe4, tree) of every module."""
    for file in sorted(SOURCE.rglob("*.py")):
        parts = list(file.relative_to(SOURCE).with_suffix("").parts)
        if parts[-1] in ("__init__", "__main__"):
            parts.pop()
        yield ".".join(parts), ast.parse(file.read_text())


def imported(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports, wherever in it it does so."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(str(node.module))
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def storey_of(storeys: tuple[set[str], ...], name: str) -> int:
    found = [number for number, names in enumerate(storeys) if name in names]
    assert len(found) == 1, f"{name} has no storey of its own here: give it one"
    return found[0]


def test_packages_import_only_those_below() -> None:
    wrong = []
    for module, tree in modules():
        package = module.partition(".")[0]
        if not package:
            continue
        for name in imported(tree):
            other = name.split(".")[1] if name.startswith("moe4.") else package
            if other in (package, "__version__"):
                continue
            if storey_of(STOREYS, other) >= storey_of(STOREYS, package):
                wrong.append(f"{module} imports moe4.{other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_those_below(package: str) -> None:
    wrong = []
    for module, tree in modules():
        if not module.startswith(f"{package}."):
            continue
        room = module.split(".")[1]
        for name in imported(tree):
            if name.startswith(f"moe4.{package}."):
                other = name.split(".")[2]
                if other != room and storey_of(ROOMS[package], other) >= storey_of(ROOMS[package], room):
                    wrong.append(f"{module} imports moe4.{package}.{other}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_with_rooms_is_held_to_them() -> None:
    """A package with rooms of modules has an order of them here; `data` and the like are no rooms."""
    for folder in SOURCE.iterdir():
        rooms = [path.parent.name for path in folder.glob("*/__init__.py")]
        if len(rooms) > 1:
            assert folder.name in ROOMS, f"{folder.name} has rooms: {', '.join(rooms)}"


def test_libraries_are_imported_where_they_belong() -> None:
    wrong = []
    for module, tree in modules():
        for library in {name.partition(".")[0] for name in imported(tree)} - {"moe4"}:
            if library in sys.stdlib_module_names:
                continue
            places = LIBRARIES.get(library, set())
            if not any(module == place or module.startswith(f"{place}.") for place in places):
                wrong.append(f"{module} imports {library}")
    assert not wrong, "\n".join(wrong)


def test_no_library_has_a_place_that_does_not_use_it() -> None:
    used = defaultdict(set)
    for module, tree in modules():
        for library in {name.partition(".")[0] for name in imported(tree)}:
            used[library].add(module)
    for library, places in LIBRARIES.items():
        for place in places:
            assert any(m == place or m.startswith(f"{place}.") for m in used[library]), (
                f"{place} no longer uses {library}"
            )


def test_the_reference_model_stands_alone() -> None:
    """It is a distribution of its own; its evaluation reads tool calls as moe4 does."""
    for file in REFERENCE.glob("*.py"):
        names = {name for name in imported(ast.parse(file.read_text())) if name.partition(".")[0] == "moe4"}
        assert names <= {"moe4.serve.tool_calls", "moe4.serve.tool_calls.parse_answer"}, file.name


def test_no_folder_is_crowded() -> None:
    counts = {
        str(folder.relative_to(SOURCE)): len(
            [file for file in folder.glob("*.py") if not file.name.startswith("__")]
        )
        for folder in (SOURCE, *SOURCE.rglob("*/"))
    }
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
