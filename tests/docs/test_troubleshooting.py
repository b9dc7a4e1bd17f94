"""docs/troubleshooting.md quotes messages that moe4 really has."""

import ast
import re
from functools import cache

import pytest
from doc_pages import DOCS, REPOSITORY

GAP = "…"
OURS = {"probe: FAIL"}  # put together from parts; tests/probe holds it


@cache
def messages() -> str:
    """Return all strings of moe4's code, one a line, with a gap in the place of each value."""
    found = []
    for path in sorted((REPOSITORY / "src" / "moe4").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


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
