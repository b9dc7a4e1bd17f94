"""docs/troubleshooting.md quotes messages that moe4 really has."""

import ast
import re
from functools import cache

import pytest
from doc_pages import DOCS, REPOSITORY

from moe4.arguments import argument, named_as_options
from moe4.vllm_facts import flags

GAP = "…"
OURS = {"probe: FAIL"}  # put together from parts; tests/probe holds it


@cache
def messages() -> str:
    """Return all strings of moe4's code, one a line, with a gap in the place of each value."""
    found = []
    for path in sorted((REPOSITORY / "src" / "moe4").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(shown, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


def shown(part: ast.expr) -> str:
    """Return a part of an f-string; an argument as the command line names it, a gap for other values."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    match part.value:
        case ast.Call(func=ast.Name(id="argument"), args=[ast.Constant(value=name), *values]):
            with named_as_options():
                given = [value.value if isinstance(value, ast.Constant) else GAP for value in values]
                return argument(name, *given)
        case ast.Attribute(value=ast.Name(id="flags"), attr=name):
            return str(getattr(flags, name))
    return GAP


def quoted() -> list[str]:
    """Return the messages that the page's headings quote."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    found = [part for line in headings for part in re.findall(r"`([^`]*)`", line)]
    return [text for text in found if " " in text and text not in OURS and text not in OTHERS]


# What other programs say, and commands.
OTHERS = {"vllm serve", "moe4 lint", "No package metadata was found for vllm"}


@pytest.mark.parametrize("message", quoted())
def test_message_exists(message: str) -> None:
    pattern = re.escape(message).replace(re.escape(GAP), ".*")
    assert re.search(pattern, messages()), message


def test_messages_are_quoted() -> None:
    assert len(quoted()) > 25
