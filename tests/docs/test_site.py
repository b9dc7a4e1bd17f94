"""The site builds without a warning, and the script that brings outside files in rewrites links rightly."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import REPOSITORY, pages

HAS_MKDOCS = all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings"))
needs_mkdocs = pytest.mark.skipif(not HAS_MKDOCS, reason="pip install -r docs/requirements.txt")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a link, anchor or page that leads nowhere ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@needs_mkdocs
def test_the_home_page_is_the_readme(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert "quantizes Mixture-of-Experts checkpoints to INT4" in home
    assert 'href="getting-started/"' in home
    assert 'src="docs/' not in home


@needs_mkdocs
def test_every_page_and_result_is_there(site: Path) -> None:
    names = {path.stem for path in pages()} - {"README"}
    names |= {f"results/{path.stem}" for path in (REPOSITORY / "benchmarks" / "results").glob("*.md")}
    assert not {name for name in names if not (site / name / "index.html").is_file()}


@needs_mkdocs
def test_docstrings_are_shown(site: Path) -> None:
    text = (site / "python-reference" / "index.html").read_text()
    assert "fused_experts" in text
    assert "UnsafePathError" in text


@needs_mkdocs
@pytest.mark.parametrize(
    ("text", "path", "place", "expected"),
    [
        ("[a](docs/scale.md#bytes)", "README.md", "index.md", "[a](scale.md#bytes)"),
        ("![a](docs/images/a.svg)", "README.md", "index.md", "![a](images/a.svg)"),
        ('<img src="docs/images/a.svg">', "README.md", "index.md", '<img src="images/a.svg">'),
        ("[a](LICENSE)", "README.md", "index.md", "[a](LICENSE.txt)"),
        ("[a](../README.md)", "docs/scale.md", "scale.md", "[a](index.md)"),
        ("[a](../recipes/w4a16-rtn.toml)", "docs/recipes.md", "recipes.md", "[a](recipes/w4a16-rtn.toml)"),
        ("[a](https://docs.vllm.ai)", "docs/scale.md", "scale.md", "[a](https://docs.vllm.ai)"),
        ("[a](#here)", "docs/scale.md", "scale.md", "[a](#here)"),
        ("[a](../src/moe4)", "docs/scale.md", "scale.md", "[a](../src/moe4)"),
    ],
)
def test_links_are_rewritten(text: str, path: str, place: str, expected: str) -> None:
    specification = importlib.util.spec_from_file_location(
        "site_hooks", REPOSITORY / "scripts" / "site_hooks.py"
    )
    assert specification is not None
    assert specification.loader is not None
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    assert hooks.rewrite(text, path, place) == expected
