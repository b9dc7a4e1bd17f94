"""A killed run resumes, and its bytes are those of a run that was never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from release_tools import run_quantize

from moe4.errors import OutputNotEmptyError, ResumeError
from moe4.recipe import Calibration, Gptq, Recipe

RECIPE = Recipe(gptq=Gptq(scale_candidates=2), calibration=Calibration(num_sequences=4))

# Kills itself just after the n-th step that makes something durable: a rename or a journal line; for n = 0,
# before the first. (Just before a step is just after the last one, but for files that have no final name
# yet.) One process, forked for each n, so that torch is imported once.
KILLER = """
import json, os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from moe4.checkpoint import durable, journal, release
from moe4.quantize import commit, run
from moe4.quantize.progress import ProgressReporter
from moe4.recipe import Recipe
import transformers.models.deepseek_v3.modeling_deepseek_v3

source, calibration, root = map(Path, sys.argv[1:4])
recipe = Recipe.from_dict(json.loads(sys.argv[4]))

def quantize(out, resume):
    request = run.Request(source=source, out=out, recipe=recipe, calibration=calibration, resume=resume)
    with ProgressReporter() as progress:
        run.quantize(request, progress)

def arm(countdown):
    left = [countdown]
    def tick():
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
    def wrap(function):
        def wrapped(*arguments):
            result = function(*arguments)
            tick()
            return result
        return wrapped
    tick()
    for module in (commit, release):
        module.publish = wrap(module.publish)
    durable.publish = wrap(durable.publish)
    journal.append_line = wrap(journal.append_line)

def child(function):
    pid = os.fork()
    if pid == 0:
        os.close(2)
        os.open(os.devnull, os.O_WRONLY)
        try:
            function()
        except BaseException as error:
            print("child failed:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

step = 0
while True:
    out = root / f"killed-{step:03d}"
    def killed():
        arm(step)
        quantize(out, False)
    code = child(killed)
    assert code in (0, -signal.SIGKILL), (step, code)
    done = code == 0
    if not done:
        code = child(lambda: quantize(out, True))
        assert code == 0, (step, code)
    step += 1
    if done:
        break
print("STEPS", step - 1)
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a release; the report without its times."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(files["moe4-report.json"])
    report.pop("timing")
    files["moe4-report.json"] = json.dumps(report).encode()
    return files


@pytest.fixture(scope="module")
def whole(source: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A release by a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_quantize(source, out, RECIPE, calibration)
    return contents(out)


def test_sigkill_around_every_durable_step(
    source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    recipe = json.dumps(RECIPE.to_dict())
    arguments = [sys.executable, "-c", KILLER, str(source), str(calibration), str(tmp_path), recipe]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    # Per layer a shard, the next input (not after the last), a record and a line; the rest, and what ends a
    # run.
    num_steps = int(result.stdout.split("STEPS")[1])
    assert num_steps >= 3 * 4 - 1 + 2 + 4
    folders = sorted(tmp_path.glob("killed-*"))
    assert len(folders) == num_steps + 1
    for folder in folders:
        assert contents(folder) == whole, folder.name


def test_signals_in_the_real_command(
    source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Ctrl-C in the second layer, SIGKILL in the third, then let it end."""
    out, recipe = tmp_path / "out", tmp_path / "recipe.toml"
    recipe.write_text("[gptq]\nscale_candidates = 2\n[calibration]\nnum_sequences = 4\n")
    arguments = [
        "quantize",
        str(source),
        str(out),
        "--calibration",
        str(calibration),
        "--recipe",
        str(recipe),
    ]

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from moe4.cli.main import main; main()", *arguments, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def signal_after(process: subprocess.Popen[str], lines: int, number: signal.Signals) -> str:
        while process.poll() is None and num_lines(out / ".moe4" / "journal.jsonl") < lines:
            time.sleep(0.001)
        process.send_signal(number)
        return process.communicate()[1]

    first = start()
    err = signal_after(first, 2, signal.SIGINT)
    assert first.returncode == 130
    assert err.splitlines()[-1] == f"moe4: interrupted; continue with: moe4 {' '.join(arguments)} --resume"
    assert "Traceback" not in err
    second = start("--resume")
    signal_after(second, 3, signal.SIGKILL)
    assert second.returncode == -signal.SIGKILL
    assert not (out / "config.json").exists()
    third = start("--resume")
    out_text, err = third.communicate()
    assert third.returncode == 0
    assert "continuing after 2 of 4 shards" in err
    assert out_text.startswith("size ")
    assert contents(out) == whole


def num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


class Interrupted(BaseException):
    """Ends a run in a test."""


@pytest.fixture
def unfinished(source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that stopped after its second shard."""
    from moe4.quantize.commit import Committer

    out = tmp_path / "out"
    real, calls = Committer._commit, []

    def commit(self: Any, shard: Any, kept: Any) -> None:
        real(self, shard, kept)
        calls.append(shard)
        if len(calls) == 2:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Committer, "_commit", commit)
        run_quantize(source, out, RECIPE, calibration)
    assert num_lines(out / ".moe4" / "journal.jsonl") == 3
    return out


def test_without_resume_nothing_is_touched(source: Path, calibration: Path, unfinished: Path) -> None:
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    with pytest.raises(OutputNotEmptyError, match="holds an unfinished run; add --resume"):
        run_quantize(source, unfinished, RECIPE, calibration)
    assert before == {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}


def test_resume_continues_and_does_not_repeat(
    source: Path,
    calibration: Path,
    unfinished: Path,
    whole: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_quantize(source, unfinished, RECIPE, calibration, resume=True)
    err = capfd.readouterr().err
    assert "continuing after 2 of 4 shards" in err
    assert "layer 2/3" not in err
    assert "layer 3/3" in err
    assert contents(unfinished) == whole


def test_resume_with_another_recipe(source: Path, calibration: Path, unfinished: Path) -> None:
    other = Recipe(group_size=64, calibration=RECIPE.calibration)
    with pytest.raises(ResumeError, match="begun with another recipe"):
        run_quantize(source, unfinished, other, calibration, resume=True)


def test_resume_with_another_source(
    source: Path, fp8_source: Path, calibration: Path, unfinished: Path
) -> None:
    with pytest.raises(ResumeError, match="begun with another source checkpoint"):
        run_quantize(fp8_source, unfinished, RECIPE, calibration, resume=True)


def test_resume_with_another_calibration(
    source: Path, calibration: Path, unfinished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(calibration.read_text().replace("apples", "pears"))
    with pytest.raises(ResumeError, match="begun with another calibration data"):
        run_quantize(source, unfinished, RECIPE, other, resume=True)


def test_resume_with_a_damaged_shard(source: Path, calibration: Path, unfinished: Path) -> None:
    shard = unfinished / "model-00002-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ResumeError, match="is not the file that was committed"):
        run_quantize(source, unfinished, RECIPE, calibration, resume=True)


def test_a_torn_journal_line_is_forgotten(
    source: Path, calibration: Path, unfinished: Path, whole: dict[str, bytes]
) -> None:
    journal = unfinished / ".moe4" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"shard": "model-00003-of')
    run_quantize(source, unfinished, RECIPE, calibration, resume=True)
    assert contents(unfinished) == whole


def test_a_damaged_journal_is_refused(source: Path, calibration: Path, unfinished: Path) -> None:
    journal = unfinished / ".moe4" / "journal.jsonl"
    journal.write_bytes(b"[]\n" + journal.read_bytes())
    with pytest.raises(ResumeError, match="is damaged"):
        run_quantize(source, unfinished, RECIPE, calibration, resume=True)


def test_resume_into_an_empty_folder_begins(
    source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    (tmp_path / "out").mkdir()
    run_quantize(source, tmp_path / "out", RECIPE, calibration, resume=True)
    assert contents(tmp_path / "out") == whole
