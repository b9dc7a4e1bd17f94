"""Write the options of the installed `vllm serve` into the table that `moe4 lint` judges command lines by.

Run it in an environment that has the version to add: `python scripts/dump_vllm_options.py`. Tables of other
versions stay as they are.
"""

import argparse
import dataclasses
import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import vllm
import vllm.config
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

TABLE = Path(__file__).parent.parent / "src" / "moe4" / "deploy" / "lint" / "command" / "vllm_options.json"
KINDS = {int: "int", float: "float", "human_readable_int": "size", "human_readable_int_or_auto": "size"}
PORT = {"ge": 0, "le": 65535}
BOUNDS = ("ge", "gt", "le", "lt")


def main() -> None:
    """Add the installed version's table."""
    version = ".".join(vllm.__version__.split("+")[0].split(".")[:2])
    tables = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    tables[version] = options_of(make_arg_parser(FlexibleArgumentParser()))
    TABLE.write_text(as_lines(tables))
    print(f"{TABLE}: {len(tables[version])} options of vLLM {version}")


def as_lines(tables: dict[str, dict[str, Any]]) -> str:
    """Return the tables as JSON with one option a line, so that a change of version reads well."""
    blocks = []
    for version, options in sorted(tables.items()):
        lines = (
            f"{json.dumps(name)}: {json.dumps(facts, sort_keys=True)}" for name, facts in options.items()
        )
        blocks.append(f"{json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def options_of(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Return each option's facts by its first long name."""
    bounds = config_bounds()
    parsers = {
        "tool_call_parser": sorted(ToolParserManager.list_registered()),
        "reasoning_parser": sorted(ReasoningParserManager.list_registered()),
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
            facts |= PORT if action.dest == "port" else bounds.get(action.dest, {})
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
    for module in pkgutil.iter_modules(vllm.config.__path__):
        for _, item in inspect.getmembers(importlib.import_module(f"vllm.config.{module.name}")):
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
