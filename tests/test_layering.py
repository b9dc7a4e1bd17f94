"""Hold moe4 to docs/architecture.md: who imports whom, which library is used where, how large a room is."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe4 import extras

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "moe4"
REFERENCE = REPOSITORY / "reference" / "k2tiny"
MOST_MODULES = 14
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES = 400
# Longer ones, each with the reason.
LONG_MODULES = {
    "probe.check": "releases carry it as one file",
    "verify.checks": "its checks share what each has read",
}
# Who reads a whole file without `files.regular`, which refuses pipes and bounds the size, with the reason.
UNBOUNDED_READERS = {
    "bounded": "of the kernel's",
    "machine.control_groups": "of the kernel's",
    "quantize.reporting.layer_record": "of the kernel's",
    "serve.extra": "of the kernel's",
    "vllm_plugin.cpu.threads": "of the kernel's",
    "checkpoint.mapping": "of the kernel's",
    "deploy.lint.command.options": "a part of moe4",
    "probe.ask": "a part of moe4",
    "probe.sequences": "a part of moe4",
    "vllm_facts.distribution": "metadata of an installed package",
    "evaluate.harness.run": "made in the same call by our own worker",
    "evaluate.harness.worker": "made in the same call by our own process",
    "serve.process": "the log of a server that this process started",
}
DOTTED = re.compile(r"[a-z_]\w*(\.\w+)+")

# From the ground up: a package may import packages of lower storeys, and itself.
STOREYS = (
    {"arguments", "errors", "escape", "strict_json", "units"},
    {"extras", "progress", "schema"},
    {"environment", "files", "machine", "bounded", "reference"},
    {"recipe", "config", "fingerprint"},
    {"checkpoint", "vllm_facts"},
    {"kernels", "gptq", "model", "calibration", "hub"},
    {"forward"},
    {"probe"},  # it runs a model forward, and quantize has it done on the way
    {"quantize", "serve", "evaluate"},
    {"verify", "vllm_plugin"},
    {"deploy"},  # it knows what serve would start
    {"publish"},  # it shows how a release is deployed
    {"prove", "power", "tune"},
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
    "deploy": ({"sizing", "smoke_answers"}, {"manifests"}, {"lint", "dashboard", "smoke"}),
    "deploy.lint": ({"command"}, {"checks"}),
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
    "datasets": {"calibration.documents", "evaluate.harness"},
    "httpx": {"deploy.smoke", "evaluate.toolcheck"},
    "huggingface_hub": {"deploy.sizing", "hub", "publish.push"},
    "jinja2": {"calibration.content_format", "publish.report_page"},
    "jsonschema": {"deploy.lint", "evaluate.toolcheck"},
    "k2tiny": {"reference"},
    "lm_eval": {"evaluate.harness"},
    "markupsafe": {"publish.report_page"},
    "numpy": {"calibration", "checkpoint", "evaluate", "kernels.inspection", "vllm_plugin.loader"},
    "openai": {"serve.chat"},
    "pyarrow": {"calibration.packed_files", "calibration.parquet"},
    "pydantic": {
        "api",
        "tune",
        "schema",
        "files.own",
        "fingerprint",
        "recipe",
        "config",
        "checkpoint",
        "calibration",
        "probe.form",
        "quantize.run.kept_tokens",
        "evaluate",
        "deploy.lint",
        "deploy.smoke_answers",
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
        "power.faults",
        "power.passes",
        "power.run",
        "probe.make",
        "probe.passes",
        "quantize",
        "tune",
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


# What makes a tensor out of nothing, in torch's default dtype unless told.
FACTORIES = {"as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}

# How the name of a class ends that holds what a user asked for, and fields whose names mean other things too.
OPTIONS = ("Options", "Request", "Recipe", "Gptq", "Wanted")
EVERYWHERE = {"name", "extra"}
# Where options come in, each under its name: a function of Python, or a command.
DOORS = ("api", "cli")

# What the core's commands import. Nothing here or below imports a library of an extra (moe4.extras) before a
# function is called.
LIGHT = (
    "api",
    "cli.app",
    "deploy",
    "files.durable",
    "probe.ask",
    "publish.card",
    "publish.proof",
    "publish.push",
    "publish.report_page",
    "quantize.forecast.forecast",
    "quantize.planning",
    "serve.doctor",
    "serve.model",
)


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
    return names | imported_by_text(tree)


def imported_by_text(tree: ast.Module) -> set[str]:
    """Return what a module may import through importlib: the dotted names among its strings.

    Those of moe4's own modules are left out: `moe4` and the command line load operations and commands late.
    """
    if not any(isinstance(node, ast.Attribute) and node.attr == "import_module" for node in ast.walk(tree)):
        return set()
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {text for text in texts if isinstance(text, str) and DOTTED.fullmatch(text)}
    own = names_in(SOURCE) | names_in(SOURCE / "cli")
    return {name for name in names if name.partition(".")[0] not in own}


def imported_at_once(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that are imported when a module is, not when a function of it is called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported_at_once(node)


def storey_of(storeys: tuple[set[str], ...], name: str) -> int:
    found = [number for number, names in enumerate(storeys) if name in names]
    assert len(found) == 1, f"{name} has no storey of its own here: give it one"
    return found[0]


def test_every_package_has_a_storey() -> None:
    """And every name in a list of rooms is there."""
    assert set().union(*STOREYS) == names_in(SOURCE)
    for package, rooms in ROOMS.items():
        assert set().union(*rooms) <= names_in(SOURCE.joinpath(*package.split("."))), package


def names_in(folder: Path) -> set[str]:
    """Return the modules and packages of a folder."""
    modules = {file.stem for file in folder.glob("*.py") if not file.name.startswith("__")}
    return modules | {file.parent.name for file in folder.glob("*/*.py")}


def test_an_import_by_its_name_as_text_is_seen() -> None:
    """The plugin finds vLLM's modules so, and the harness its own."""
    found = {name: imported(tree) for name, tree in modules()}
    assert any(name.startswith("vllm.") for name in found["vllm_plugin.cpu.eager"])
    assert "lm_eval.models.vllm_causallms" in found["evaluate.harness.backend"]


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
        depth = package.count(".") + 1
        room = module.split(".")[depth]
        for name in imported(tree):
            if name.startswith(f"moe4.{package}."):
                other = name.split(".")[depth + 1]
                if depth > 1 and not {room, other} <= set().union(*ROOMS[package]):
                    continue  # of a room in a room only the folders are held to an order
                if other != room and storey_of(ROOMS[package], other) >= storey_of(ROOMS[package], room):
                    wrong.append(f"{module} imports moe4.{package}.{other}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_with_rooms_is_held_to_them() -> None:
    """A package with rooms of modules has an order of them here; `data` and the like are no rooms."""
    for folder in SOURCE.rglob("*/"):
        name = ".".join(folder.relative_to(SOURCE).parts)
        rooms = [path.parent.name for path in folder.glob("*/__init__.py")]
        if name and len(rooms) > 1:
            assert name in ROOMS, f"{name} has rooms: {', '.join(rooms)}"


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


@pytest.mark.parametrize("root", LIGHT)
def test_the_core_imports_no_library_of_an_extra(root: str) -> None:
    known = {f"moe4.{name}".rstrip("."): set(imported_at_once(tree)) for name, tree in modules()}
    ways = {name: name for name in known if name == f"moe4.{root}" or name.startswith(f"moe4.{root}.")}
    assert ways, f"there is no {root}"
    waiting = list(ways)
    while waiting:
        module = waiting.pop()
        parents = {module.rpartition(".")[0]} & known.keys()
        for name in known[module] | parents:
            assert name.partition(".")[0] not in extras.LIBRARIES, f"{ways[module]} -> {name}"
            if name in known and name not in ways:
                ways[name] = f"{ways[module]} -> {name}"
                waiting.append(name)


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
    for file in REFERENCE.rglob("*.py"):
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


def test_whole_files_are_read_within_bounds() -> None:
    found = {
        module
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("read_text", "read_bytes")
    }
    assert found == UNBOUNDED_READERS.keys()


def test_new_tensors_name_their_dtype() -> None:
    """torch's default dtype is the whole process': another thread that builds a model may have changed it."""
    found = [
        f"{module}:{node.lineno}: torch.{node.func.attr}"
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if node.func.attr in FACTORIES and all(keyword.arg != "dtype" for keyword in node.keywords)
    ]
    assert found == []


def test_functions_are_short() -> None:
    long = [
        f"{module}.{node.name}: {length} lines"
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if (length := node.end_lineno - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


def test_long_modules_have_a_reason() -> None:
    long = {
        module for module, tree in modules() if tree.body and (tree.body[-1].end_lineno or 0) > MOST_LINES
    }
    assert long == LONG_MODULES.keys()


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def fields_of_options(tree: ast.Module) -> set[str]:
    """Return the fields of a module's classes that hold what a user asked for."""
    return {
        str(entry.target.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(OPTIONS)
        for entry in node.body
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
    }


def test_an_option_meets_each_room_at_most_twice() -> None:
    """It travels in the object it came in: in two modules of a room at most do functions take it by its name.

    A `torch.device` is no option, but what a module is about.
    """
    options, places = defaultdict(set), defaultdict(set)
    for module, tree in modules():
        package, *rooms = module.split(".")[:-1] or [""]
        room = rooms[0] if rooms else ""  # modules that lie beside rooms make up one
        options[package] |= fields_of_options(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for parameter in (*node.args.args, *node.args.kwonlyargs):
                    kind = ast.unparse(parameter.annotation) if parameter.annotation else ""
                    if "torch.device" not in kind:
                        places[package, room, parameter.arg].add(module)
    assert {"calibration", "trust_remote_code", "allow_extra"} <= options["quantize"]
    wrong = [
        f"{package}.{room}: {name} is a parameter in {', '.join(sorted(found))}"
        for (package, room, name), found in places.items()
        if len(found) > 2 and name in options[package] and package not in DOORS and name not in EVERYWHERE
    ]
    assert not wrong, "\n".join(wrong)
