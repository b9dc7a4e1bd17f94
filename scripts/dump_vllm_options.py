"""Write the options of a `vllm serve` into the table that `moe4 lint` judges command lines by.

Run it in an environment that has the version to add: `python scripts/dump_vllm_options.py`. Tables of other
versions stay as they are. Before 0.12 options also changed between patch releases: `--patch` adds the table
of one of those. Another version's wheel, unpacked, does as well, if its Python code can be imported:
`VLLM_PLUGINS= PYTHONPATH=UNPACKED python scripts/dump_vllm_options.py`.
"""

import argparse
import dataclasses
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import transformers

# An old vLLM registers models that the installed transformers has by now.
transformers.AutoConfig.register = partial(transformers.AutoConfig.register, exist_ok=True)

import vllm  # noqa: E402
import vllm.config  # noqa: E402
from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: E402

TABLE = Path(__file__).parent.parent / "src" / "moe4" / "deploy" / "lint" / "command" / "vllm_options.json"
KINDS = {int: "int", float: "float", "human_readable_int": "size", "human_readable_int_or_auto": "size"}
# What vLLM checks in code, not by the types of its configuration; old versions check more so.
CHECKED: dict[str, dict[str, float]] = {
    "port": {"ge": 0, "le": 65535},
    "gpu_memory_utilization": {"gt": 0, "le": 1},
}
BOUNDS = ("ge", "gt", "le", "lt")
Facts = dict[str, Any]


def main() -> None:
    """Add this version's table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--patch", action="store_true", help="the table is of this patch release alone")
    parts = 3 if arguments.parse_args().patch else 2
    version = ".".join(vllm.__version__.split("+")[0].split(".")[:parts])
    tables = read_tables()
    tables[version] = options_of(serve_parser())
    TABLE.write_text(as_lines(tables))
    print(f"{TABLE}: {len(tables[version])} options of vLLM {version}")


def read_tables() -> dict[str, dict[str, Facts]]:
    """Return the tables that are there, by version."""
    found = json.loads(TABLE.read_text())
    versions = found["versions"]
    tables: dict[str, dict[str, Facts]] = {version: {} for version in versions}
    for name, rows in found["options"].items():
        for row in rows:
            first, last = row.pop("first"), row.pop("last")
            for version in versions[versions.index(first) : versions.index(last) + 1]:
                tables[version][name] = row
    return tables


def serve_parser() -> argparse.ArgumentParser:
    """Return the parser of `vllm serve`."""
    parser = from_either("vllm.utils.argparse_utils", "vllm.utils").FlexibleArgumentParser()
    return ServeSubcommand().subparser_init(parser.add_subparsers())


def from_either(*names: str) -> Any:
    """Return the first module that this version has."""
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return importlib.import_module(names[-1])


def registered(manager: Any) -> list[str]:
    """Return the names of all parsers of a manager; versions differ in how they keep them."""
    kinds = ("tool_parsers", "reasoning_parsers", "lazy_parsers")
    return sorted({name for kind in kinds for name in getattr(manager, kind, {})})


def as_lines(tables: dict[str, dict[str, Facts]]) -> str:
    """Return the tables as JSON: an option's facts once for all the versions in a row that share them."""
    versions = sorted(tables, key=lambda text: [int(part) for part in text.split(".")])
    lines = []
    for name in sorted({name for table in tables.values() for name in table}):
        spans = [json.dumps(span, sort_keys=True) for span in spans_of(name, versions, tables)]
        lines.append(f"{json.dumps(name)}: [\n  " + ",\n  ".join(spans) + "\n]")
    return f'{{\n"versions": {json.dumps(versions)},\n"options": {{\n' + ",\n".join(lines) + "\n}\n}\n"


def spans_of(name: str, versions: list[str], tables: dict[str, dict[str, Facts]]) -> Iterator[Facts]:
    """Yield an option's facts with the first and the last version of each row of versions that has them."""
    first, before = "", ""
    for version in [*versions, ""]:
        facts = tables[version].get(name) if version else None
        if first and facts != tables[first].get(name):
            yield {"first": first, "last": before} | tables[first][name]
            first = ""
        if facts is not None and not first:
            first = version
        before = version


def options_of(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Return each option's facts by its first long name."""
    bounds = config_bounds()
    tools = from_either("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers")
    reasoning = importlib.import_module("vllm.reasoning")
    parsers = {
        "tool_call_parser": registered(tools.ToolParserManager),
        "reasoning_parser": registered(reasoning.ReasoningParserManager),
    }
    table = {}
    for action in parser._actions:
        names = list(action.option_strings)
        if not names:
            continue
        name = next((item for item in names if item.startswith("--")), names[0])
        kind = "switch" if action.nargs == 0 else kind_of(action.type)
        facts: dict[str, Any] = {"kind": kind, "names": names}
        choices = parsers.get(action.dest) or (None if action.choices is None else list(action.choices))
        if choices:
            facts["choices"] = [str(item) for item in choices]
        if action.nargs not in (0, None):
            facts["nargs"] = action.nargs
        if kind in ("int", "float", "size"):
            facts |= CHECKED.get(action.dest) or bounds.get(action.dest, {})
        table[name] = facts
    return dict(sorted(table.items()))


def kind_of(convert: Any) -> str:
    """Return what an option's value is read as: int, float, size (32k), or text, which is not judged."""
    if getattr(convert, "__name__", "") == "_optional_type":  # vLLM's closure over the real one
        convert = inspect.getclosurevars(convert).nonlocals.get("return_type")
    return KINDS.get(convert) or KINDS.get(getattr(convert, "__name__", "")) or "text"


def config_bounds() -> dict[str, dict[str, float]]:
    """Return the bounds that vLLM's configuration classes set, by field; those of one name must agree."""
    found: dict[str, dict[str, float]] = {}
    clashing = set()
    names = [
        f"vllm.config.{module.name}" for module in pkgutil.iter_modules(getattr(vllm.config, "__path__", ()))
    ]
    for module in names or ["vllm.config"]:
        for _, item in inspect.getmembers(importlib.import_module(module)):
            if not (inspect.isclass(item) and dataclasses.is_dataclass(item)):
                continue
            for name, field in getattr(item, "__pydantic_fields__", {}).items():
                limits = {
                    key: getattr(mark, key)
                    for mark in field.metadata
                    for key in BOUNDS
                    if getattr(mark, key, None) is not None
                }
                if found.setdefault(name, limits) != limits:
                    clashing.add(name)
    return {name: limits for name, limits in found.items() if name not in clashing}


if __name__ == "__main__":
    main()
