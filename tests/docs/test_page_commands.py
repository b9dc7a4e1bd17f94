"""The commands of the tutorials, run as they stand; all other commands at least exist, with their options.

A page's blocks run one after the other in a folder that looks like a clone, with k2-tiny.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doc_pages import DOCS, REPOSITORY, Block, blocks, commands, pages, run_blocks

PORT = 8000  # the default, which the pages rely on
START_SECONDS = 600


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what the pages take from a clone."""
    for name in ("reference", "examples", "recipes"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def environment() -> dict[str, str]:
    """Ours, with this Python and its moe4 first in the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(block: Block, folder: Path) -> str:
    """Run a block in a shell that stops at the first error; return what it printed."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{block}:\n{block.text}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@contextmanager
def serving(block: Block, folder: Path) -> Iterator[None]:
    """Run a block's server while inside, from when it says that it is ready."""
    (command,) = commands(block.text)
    log = folder / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            shlex.split(command), cwd=folder, env=environment(), stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "moe4: ready after" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert "probe: PASS" in log.read_text()
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert server.returncode == 0


def run_page(name: str, folder: Path) -> str:
    """Run all marked blocks of a page; return what they printed."""
    printed: list[str] = []
    found = run_blocks(name)
    assert found
    places = [place for place, block in enumerate(found) if block.is_server]
    for block in found[: places[0]] if places else found:
        printed.append(run(block, folder))
    if places:
        with serving(found[places[0]], folder):
            printed += [run(block, folder) for block in found[places[0] + 1 :]]
    return "".join(printed)


@pytest.mark.vllm
@pytest.mark.timeout(2400)
def test_getting_started(clone: Path) -> None:
    with socket.socket() as listener:
        if listener.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT}, which the page uses, is taken")
    printed = run_page("getting-started.md", clone)
    assert "ok        " in printed  # moe4 verify
    assert '"role":"assistant"' in printed  # curl
    assert "get_weather" in printed  # examples/tool_call.py


@pytest.mark.timeout(1800)
def test_your_model(clone: Path) -> None:
    printed = run_page("your-model.md", clone)
    assert "ok        no problems found" in printed  # moe4 plan
    assert (clone / "out/my-release/moe4-report.json").is_file()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["recipes.md", "deployment.md"])
def test_page(name: str, clone: Path) -> None:
    run_page(name, clone)


def test_the_readme_runs_what_getting_started_runs() -> None:
    readme = {command for block in run_blocks("README.md") for command in commands(block.text)}
    tested = {command for block in run_blocks("getting-started.md") for command in commands(block.text)}
    assert readme
    assert readme <= tested


def known_options() -> dict[str, set[str]]:
    """Read each command's options from its help, which docs/cli.md holds."""
    sections = (DOCS / "cli.md").read_text(encoding="utf-8").split("\n## moe4 ")[1:]
    found: dict[str, set[str]] = {}
    for section in sections:
        name, _, help_text = section.partition("\n")
        words = help_text.replace("/", " ").replace(",", " ").split()
        found[name] = {word for word in words if word.startswith("-")}
    return found


def moe4_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every moe4 command in a page's blocks, fenced or indented."""
    text = page.read_text(encoding="utf-8")
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    fenced = "\n".join(block.text for block in blocks(page) if block.language in ("", "bash"))
    for command in commands(f"{indented}\n{fenced}"):
        _, found, rest = f" {command}".partition(" moe4 ")
        words = rest.split()
        if found and words:
            yield words[0], words[1:]


@pytest.mark.parametrize(
    "page", [page for page in pages() if page.name not in ("cli.md", "log.md")], ids=lambda page: page.name
)
def test_commands_have_their_options(page: Path) -> None:
    options = known_options()
    for name, words in moe4_commands(page):
        if name not in options:
            assert not name.isalpha() or name in PROSE, f"{page.name}: there is no command moe4 {name}"
            continue
        given = {
            word.strip("[],;:)(").partition("=")[0] for word in words if word.strip("[(").startswith("--")
        }
        passed_on = name == "serve"  # to vLLM
        unknown = set() if passed_on else {each for each in given - options[name] if each != "--"}
        assert not unknown, f"{page.name}: moe4 {name} has no {', '.join(sorted(unknown))}"


# Words that follow "moe4" in a block that is not a command: what programs print.
PROSE = {"error", "knows", "corrects", "cannot", "mapped"}


NAMED_FILE = re.compile(
    r"\b(?:benchmarks|examples|packaging|recipes|reference|scripts|src|tests)/[\w./-]*\.\w+"
)


@pytest.mark.parametrize(
    "page", [*pages(), *sorted((REPOSITORY / "benchmarks/results").glob("*.md"))], ids=str
)
def test_files_named_in_pages_exist(page: Path) -> None:
    named = set(NAMED_FILE.findall(page.read_text(encoding="utf-8")))
    assert not {name for name in named if not (REPOSITORY / name).exists()}
