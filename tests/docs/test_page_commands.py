"""The commands of the tutorials, run as they stand; all other commands at least exist, with their options.

A page's blocks run one after the other in a folder that looks like a clone, with k2-tiny. The page
that starts a server is run by tests/examples/test_examples.py, whose examples ask that server.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_pages import DOCS, REPOSITORY, blocks, commands, pages, run_block, run_blocks, write_clone


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what the pages take from a clone."""
    return write_clone(tmp_path / "clone")


def run_page(name: str, folder: Path) -> str:
    """Run all marked blocks of a page; return what they printed."""
    found = run_blocks(name)
    assert found
    return "".join(run_block(block, folder) for block in found)


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
