"""The examples of docs/python.md, of the notebook and of the docstrings run as they stand."""

import doctest
import inspect
import json
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from deploy.openai_stand_in import serving as serving_chats
from model_fixtures import REFERENCE_MODEL, REPOSITORY
from probe.completions_stand_in import make_expected
from probe.completions_stand_in import serving as serving_probe

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


NEEDS_A_SERVER = ("check_answers", "chat", "smoke", "toolcheck")
TOO_LONG = (
    "compare",
    "eval",
    "power",
    "probe",
    "prove",
    "quantize",
    "serve",
    "tune",
)  # each has tests of its own
NEEDS_THE_HUB = ("push",)
FUNCTIONS = [name for name in moe4.__all__ if inspect.isfunction(getattr(moe4, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_are_whole(name: str) -> None:
    """Each names its arguments and its errors, and has an example."""
    text = inspect.getdoc(getattr(moe4, name)) or ""
    for argument in inspect.signature(getattr(moe4, name)).parameters:
        assert re.search(rf"\b{argument}\b", text), argument
    assert re.search(r"\b[Rr]aises\b", text)
    assert ">>> " in text


def test_the_docstrings(folder: Path) -> None:
    """After the guide, whose release they look at."""
    (folder / "deployment.yaml").write_text(
        str(moe4.deploy("kubernetes", "release", model="pvc://models/k2", gpu="l40s"))
    )
    left_out = (*NEEDS_A_SERVER, *TOO_LONG, *NEEDS_THE_HUB, "own_process")  # which changes this process
    for name in FUNCTIONS:
        if name in left_out or (name == "serve_command" and not find_spec("vllm")):
            continue
        run_docstring(name, {})


def test_the_docstrings_of_what_asks_a_server(folder: Path) -> None:
    expected = make_expected()
    (folder / "answers.json").write_text(json.dumps(expected))
    with serving_chats() as chats, serving_probe(expected) as probed:
        run_docstring("check_answers", {"http://127.0.0.1:8000": probed, '"release"': '"answers.json"'})
        for name in ("chat", "smoke"):
            run_docstring(name, {"http://127.0.0.1:8000": chats})


def run_docstring(name: str, replaced: dict[str, str]) -> None:
    """Run a function's examples, with what is replaced in them."""
    text = inspect.getdoc(getattr(moe4, name)) or ""
    for before, after in replaced.items():
        text = text.replace(before, after)
    names = {"moe4": moe4, "Path": Path}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


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
