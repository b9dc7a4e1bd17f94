"""The operations as a program calls them: what they return, what they leave alone."""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import write_random_model

import moe4
from moe4.errors import OutputError

SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
RTN = {"method": "rtn"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("api") / "source", **SMALL)


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    path = source.parent / "text.jsonl"
    path.write_text('{"text": "Tom has 12 apples and 30 pears."}\n{"text": "How many has he?"}\n' * 4)
    return path


@pytest.fixture(scope="module")
def release(source: Path) -> Path:
    moe4.quantize(source, source.parent / "release", recipe=RTN)
    return source.parent / "release"


def state() -> dict[str, Any]:
    """What belongs to the process, and so to whoever calls."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return {
        "threads": torch.get_num_threads(),
        "signals": [signal.getsignal(number) for number in numbers],
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "logging": (logging.getLogger().handlers, logging.getLogger("moe4").level),
        "streams": (sys.stdout, sys.stderr),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "random": torch.random.get_rng_state().sum().item(),
        "hook": sys.excepthook,
    }


def test_a_release_is_made_and_checked_and_nothing_is_printed(
    source: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = state()
    steps: list[moe4.Progress] = []
    out = tmp_path / "release"
    recipe = {"calibration": {"num_sequences": 4}}
    plan = moe4.plan(str(source), str(out), recipe=recipe, calibration=str(text))
    assert (plan.ok, plan.problems, plan.calibration.exact) == (True, [], True)
    report = moe4.quantize(
        str(source), str(out), recipe=recipe, calibration=str(text), on_progress=steps.append
    )
    assert len(report.release.shards) == plan.release.num_shards
    assert report.calibration is not None
    assert report.calibration.num_tokens == plan.calibration.num_tokens
    assert report.as_dict() == json.loads((out / "moe4-report.json").read_text())
    assert moe4.load_report(out) == report
    verified = moe4.verify(out, source=source, on_progress=steps.append)
    assert (verified.ok, verified.problems) == (True, [])
    assert verified.num_bytes == report.release.num_bytes
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_progress_goes_from_nothing_to_all(source: Path, text: Path, tmp_path: Path) -> None:
    steps: list[moe4.Progress] = []
    moe4.quantize(source, tmp_path / "release", calibration=text, on_progress=steps.append)
    assert all(isinstance(step, moe4.Progress) for step in steps)
    done = [step.done for step in steps if step.done is not None]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0.0, pytest.approx(1.0))
    assert {step.of for step in steps} == {2}
    assert {step.layer for step in steps} == {0, 1}
    assert "layer 1 expert 3" in [step.stage for step in steps]
    assert all(step.seconds_left is not None and step.seconds_left >= 0 for step in steps)
    assert str(steps[-1]).startswith("embedding, head, 100 %, 0:00:00 left")


def test_verifying_tells_how_far_it_is(release: Path) -> None:
    steps: list[moe4.Progress] = []
    moe4.verify(release, on_progress=steps.append)
    done = [step.done for step in steps]
    assert done == sorted(done, key=lambda share: share or 0)
    assert done[-1] == 1.0


def test_one_release_whatever_form_the_recipe_has(source: Path, release: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('method = "rtn"\n')
    for number, recipe in enumerate((moe4.Recipe(method="rtn"), file, str(file))):
        moe4.quantize(source, tmp_path / str(number), recipe=recipe)
        for path in release.glob("*.safetensors"):
            assert (tmp_path / str(number) / path.name).read_bytes() == path.read_bytes()


def test_an_interrupted_run_goes_on(source: Path, release: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(step: moe4.Progress) -> None:
        if step.layer == 1:
            raise StopError

    out = tmp_path / "release"
    with pytest.raises(StopError):
        moe4.quantize(source, out, recipe=RTN, on_progress=stop)
    with pytest.raises(OutputError, match="add resume=True"):
        moe4.quantize(source, out, recipe=RTN)
    moe4.quantize(source, out, recipe=RTN, resume=True)
    for path in release.glob("*.safetensors"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_it_runs_in_any_thread(source: Path, tmp_path: Path) -> None:
    """Nothing in it takes the process's signals, which only the main thread may."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(moe4.quantize(source, tmp_path / "release", recipe=RTN))
            found.append(moe4.verify(tmp_path / "release"))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    report, verified = found
    assert report.release.num_bytes == verified.num_bytes


def test_lines_go_to_the_logger(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "moe4"):
        moe4.quantize(source, tmp_path / "release", recipe=RTN)
    lines = [record.getMessage() for record in caplog.records if record.name == "moe4"]
    assert any(line.startswith("layer 0 (1 of 2 done): ") for line in lines)
    assert capfd.readouterr().out == ""


def test_a_damaged_release_is_told_in_problems(release: Path, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "release"
    moe4.quantize(source, copy, recipe=RTN)
    (copy / "tokenizer.json").write_text("{}")
    found = moe4.verify(copy)
    assert not found.ok
    assert any(problem.startswith("tokenizer.json is not the file") for problem in found.problems)
    assert str(found).splitlines()[-1].startswith("failed    ")
    assert found.as_dict()["problems"] == found.problems


def test_predictions_are_compared(source: Path, release: Path, text: Path, tmp_path: Path) -> None:
    steps: list[moe4.Progress] = []
    found = moe4.compare(
        source, release, data=text, output=tmp_path / "comparison.json", on_progress=steps.append
    )
    assert 0 <= found.kl.mean < 1
    assert len(found.layers) == 2
    assert [(step.layer, step.of) for step in steps] == [(0, 2), (1, 2)]
    assert found.as_dict() == json.loads((tmp_path / "comparison.json").read_text())
    assert "nats a token" in str(found)


def test_coverage_is_counted(source: Path, text: Path, tmp_path: Path) -> None:
    found = moe4.coverage(source, text, cold_tokens=1)
    assert found.num_documents == 8
    assert sum(found.layers[0].tokens) == 2 * found.num_tokens
    assert found.ok
    shared = moe4.coverage(
        source, text, choose=2, output=tmp_path / "chosen.jsonl", evaluation=[text], cold_tokens=1
    )
    assert not shared.ok
    assert len((tmp_path / "chosen.jsonl").read_text().splitlines()) == 2
    assert "documents chosen" in str(shared)


def test_expected_answers_are_made(release: Path, tmp_path: Path) -> None:
    found = moe4.probe(release, output=tmp_path / "probe.json")
    assert found.num_sequences > 8
    assert json.loads((tmp_path / "probe.json").read_text())["format"] == "moe4-probe"
    assert str(found).endswith(f"written   {tmp_path / 'probe.json'}")
    with pytest.raises(OutputError, match="already exists"):
        moe4.probe(release, output=tmp_path / "probe.json")


def test_what_was_measured_is_shown(release: Path, source: Path, text: Path) -> None:
    skipped = ["evaluation", "tools", "probe"]  # what asks a server
    proved = moe4.prove(source, release, data=text, skip=skipped, cache=release.parent / "c")
    assert proved.ok
    assert proved.comparison is not None
    assert moe4.report(release) == release / "proof" / "report.html"
    card = card_text(release)
    assert f"{proved.comparison.kl.mean:.5f} nats" in card
    names = [upload.name for upload in moe4.list_uploads(release, "someone/model")]
    assert {"README.md", "config.json"} <= set(names)
    with pytest.raises(OutputError, match="expected OWNER/NAME"):
        moe4.list_uploads(release, "model")


def card_text(release: Path) -> str:
    card = moe4.card(release, write=False)
    assert card.path == release / "README.md"
    return str(card)


def test_a_release_is_sized_deployed_and_linted(release: Path, tmp_path: Path) -> None:
    one = moe4.fit(str(release), gpu="h100")
    assert (len(one.fits), one.ok, one.fits[0].works) == (1, True, True)
    assert one.as_dict()["fit"]["verdict"] == one.fits[0].verdict
    assert not moe4.fit(str(release), gpu_memory=1).ok
    table = moe4.fit(str(release))
    assert len(table.fits) > 5
    assert "recommended: " in str(table)
    made = moe4.deploy("compose", str(release), gpu="l40s")
    (path,) = made.write(tmp_path / "compose.yaml")
    assert path.read_text() == str(made)
    assert moe4.lint([path], release=str(release)).count("error") == 0
    path.write_text(path.read_text().replace("--tool-call-parser", "--tool-cal-parser"))
    found = moe4.lint([path], release=str(release))
    assert not found.ok
    assert found.as_list()[0]["file"] == str(path)
    board = moe4.deploy("dashboard", str(release))
    assert [file.suffix for file in board.write(tmp_path / "board")] == [".json", ".yaml"]


def test_the_machine_is_described() -> None:
    found = moe4.doctor()
    assert found.machine.selected in [path.name for path in found.machine.paths]
    assert found.as_dict()["selected"] == found.machine.selected
    assert str(found).startswith("versions   moe4 ")
