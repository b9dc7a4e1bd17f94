"""The examples of docs/python.md, of the notebook and of the docstrings run as they stand."""

import doctest
import inspect
import json
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import REFERENCE_MODEL, REPOSITORY

import moe4

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER: dict[str, Any] = {"max_model_len": 2048}
NOTEBOOK = REPOSITORY / "examples" / "quantize_k2_tiny.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the reference model in it, as the examples name it."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "k2-tiny").symlink_to(REFERENCE_MODEL)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def blocks() -> list[str]:
    return BLOCK.findall((REPOSITORY / "docs" / "python.md").read_text())


def cells(*, serving: bool) -> list[str]:
    """Return the notebook's code: that which starts a server, or the rest."""
    found = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    return [
        "".join(cell["source"]) for cell in found if serving == ("vllm" in cell["metadata"].get("tags", []))
    ]


def run(programs: list[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for program in programs:
        exec(compile(program, "<example>", "exec"), names)


def test_the_guide(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run([block for block in blocks() if "moe4.serve(" not in block])
    shown = capfd.readouterr()
    assert "recipe: group_size must be one of 32, 64, 128 or auto, found 48\n" in shown.out
    assert re.search(r"^layer 2 of 5: layer 2 expert 1, \d+ s left$", shown.out, re.MULTILINE)
    assert shown.err == ""


def test_the_docstrings(folder: Path) -> None:
    """After the guide, whose release they look at."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for name in ("plan", "load_report", "verify", "card", "fit", "deploy"):
        text = inspect.getdoc(getattr(moe4, name))
        assert text is not None
        test = doctest.DocTestParser().get_doctest(text, {"moe4": moe4}, name, None, None)
        assert test.examples, name
        assert runner.run(test).failed == 0


def test_the_notebook(folder: Path) -> None:
    """But for its server, which the last test starts."""
    run(cells(serving=False))
    assert (folder / "k2-tiny-w4a16" / "moe4-report.json").is_file()


def test_the_notebook_keeps_no_output() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Any]:
    """The server that the guide and the notebook ask for, and `moe4.prove` starts."""
    pytest.importorskip("vllm")
    moe4.quantize("k2-tiny", "served", recipe={"method": "rtn"})
    with moe4.serve("served", **SERVER) as server:
        yield server


@pytest.mark.vllm
def test_the_servers(server: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's and the notebook's are the same, which is started once; the answers are right."""

    def serve(release: str, **options: Any) -> Any:
        assert options == SERVER
        return nullcontext(server)

    monkeypatch.setattr(moe4, "serve", serve)
    (block,) = [block for block in blocks() if "moe4.serve(" in block]
    (cell,) = cells(serving=True)
    for program in (block, cell):
        run(["import moe4", program])
        assert "#### 96" in capfd.readouterr().out


@pytest.mark.vllm
def test_proving_asks_a_server(server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the answers that are expected of its release."""
    monkeypatch.setattr(import_module("moe4.prove.run"), "serving", lambda *_, **__: nullcontext(server))
    (folder / "text.jsonl").write_text('{"text": "Tom has 12 apples and 30 pears."}\n' * 2)
    proved = moe4.prove("k2-tiny", "served", data="text.jsonl", skip=["evaluation", "tools"], cache="cache")
    assert proved.ok
    assert proved.probe is not None
    assert proved.probe.passed
