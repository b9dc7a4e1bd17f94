"""The documentation as tests read it: pages, their code blocks, and the blocks that are marked to be run.

A block is marked by a comment on the line before it: `<!-- run -->`, or `<!-- run: server -->` if it starts
a server that the blocks after it need.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
FENCE = re.compile(
    r"^(?:<!-- run(?P<server>: server)? -->\n(?P<marked>))?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    is_run: bool
    is_server: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The README and all pages of docs/."""
    return [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page.name,
            line=text.count("\n", 0, found.start("text")) + 1,
            language=found["language"],
            text=found["text"],
            is_run=found["marked"] is not None,
            is_server=found["server"] is not None,
        )
        for found in FENCE.finditer(text)
    ]


def run_blocks(name: str) -> list[Block]:
    """Return the blocks of a page that are marked to be run."""
    page = REPOSITORY / name if name == "README.md" else DOCS / name
    return [block for block in blocks(page) if block.is_run]


def commands(text: str) -> Iterator[str]:
    """Yield the shell commands of a text, with continued lines joined and without comments."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
        if command:
            yield command


def write_clone(folder: Path) -> Path:
    """Make a folder with what the pages take from a clone."""
    folder.mkdir()
    for name in ("reference", "examples", "recipes"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def shell_environment() -> dict[str, str]:
    """Return ours, with this Python and its moe4 first in the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run_block(block: Block, folder: Path) -> str:
    """Run a block in a shell that stops at the first error; return what it printed."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=shell_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{block}:\n{block.text}\n{result.stdout}\n{result.stderr}"
    return result.stdout
