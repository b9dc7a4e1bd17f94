"""A killed run resumes, and its bytes are those of a run that was never killed; so does one out of room."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from few_prompts import ask_few_prompts
from release_tools import Forks, contents, interrupt_after, run_quantize
from safetensors.torch import load_file, save_file

from moe4.errors import KernelError, OutputError, OutputNotEmptyError, ResumeError
from moe4.gptq.products import HAS_BF16
from moe4.recipe import Calibration, Gptq, Recipe, override

RECIPE = Recipe(
    group_size=32,
    gptq=Gptq(scale_candidates=2),
    calibration=Calibration(num_sequences=4, max_sequence_tokens=64),
)
KILLED = -signal.SIGKILL
TESTS = Path(__file__).parents[2]
COMMAND = """
import runpy
from few_prompts import ask_few_prompts
ask_few_prompts()
runpy.run_module("moe4", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _few_prompts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        ask_few_prompts(patch.setattr)
        yield


@pytest.fixture(scope="module")
def whole(
    small_source: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """A release by a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_quantize(small_source, out, RECIPE, calibration)
    return contents(out)


def run(forks: Forks, source: Path, out: Path, calibration: Path, **request: Any) -> tuple[int, str]:
    """Quantize in a process of its own; return its exit code and what it printed."""
    (rank,) = forks.run(source, out, RECIPE, calibration, few_prompts=True, **request)["ranks"]
    return rank["code"], rank["log"]


def test_sigkill_around_every_durable_step(
    small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes], forks: Forks
) -> None:
    """Just before a step is just after the last one, but for files that have no final name yet."""
    for step in range(100):
        out = tmp_path / f"killed-{step}"
        faults = {"0": {"durable_step": step}}
        code, log = run(forks, small_source, out, calibration, faults=faults)
        if code == 0:
            break
        assert code == KILLED, log
        code, log = run(forks, small_source, out, calibration, resume=True)
        assert code == 0, log
        assert contents(out) == whole
    # Per layer a shard, the next input (not after the last), a record and a line; the rest, what ends a run.
    assert step >= 3 * 4 - 1 + 2 + 4


def test_sigkill_while_a_layer_is_committed_behind_the_next(
    small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes], forks: Forks
) -> None:
    """As on a GPU, but for the GPU: activations in memory, commits in a thread of their own."""
    for step in range(0, 100, 2):  # every one is killed above
        out = tmp_path / f"killed-{step}"
        faults = {"0": {"as_on_gpus": True, "durable_step": step}}
        code, log = run(forks, small_source, out, calibration, faults=faults)
        if code == 0:
            break
        assert code == KILLED, log
        assert not (out / ".moe4" / "hidden-00000.bin").exists()
        faults = {"0": {"as_on_gpus": step % 4 == 0}}
        code, log = run(forks, small_source, out, calibration, resume=True, faults=faults)
        assert code == 0, log
        assert contents(out) == whole
    assert step >= 3 * 4 - 1 + 2 + 4


@pytest.mark.parametrize("call", [3, 8, 14, 20])
def test_a_full_disk_behind_the_next_layer(
    call: int, small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes], forks: Forks
) -> None:
    out = tmp_path / "out"
    faults = {"0": {"as_on_gpus": True, "no_room": call}}
    code, log = run(forks, small_source, out, calibration, faults=faults)
    assert code == 2, log
    assert log.splitlines()[-1] == (
        f"DiskSpaceError: {out}: the volume is full; free some space and run again with resume=True"
    )
    assert not (out / "config.json").exists()
    code, log = run(forks, small_source, out, calibration, resume=True)
    assert code == 0, log
    assert contents(out) == whole


def test_sigkill_at_20_random_moments(
    small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes], forks: Forks
) -> None:
    """Each folder is killed again and again until it is finished."""
    answer = forks.run(small_source, tmp_path / "timed", RECIPE, calibration, few_prompts=True)
    generator = random.Random(7)
    num_killed, num_finished, num_resumed = 0, 0, 0
    while num_killed < 20:
        out, unfinished = tmp_path / f"out-{num_finished}", True
        while unfinished:
            moment = generator.uniform(0, 1.05 * answer["seconds"]) if num_killed < 20 else 3600
            if moment == 3600:
                code, log = run(forks, small_source, out, calibration, resume=True)
            else:
                code, log = run(forks, small_source, out, calibration, resume=True, kill_after=moment)
            assert code in (0, KILLED), log
            num_killed += code == KILLED
            num_resumed += "continuing after" in log
            unfinished = code != 0
        assert contents(out) == whole
        num_finished += 1
    assert num_killed == 20
    assert num_resumed > 0


@pytest.mark.parametrize("call", [0, 2, 5, 9, 14, 20, 30, 45])
def test_a_full_disk(
    call: int, small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes], forks: Forks
) -> None:
    """The n-th call of the system that takes space finds none."""
    out = tmp_path / "out"
    code, log = run(forks, small_source, out, calibration, faults={"0": {"no_room": call}})
    assert code == 2, log
    assert log.splitlines()[-1] == (
        f"DiskSpaceError: {out}: the volume is full; free some space and run again with resume=True"
    )
    assert not (out / "config.json").exists()
    code, log = run(forks, small_source, out, calibration, resume=True)
    assert code == 0, log
    assert contents(out) == whole


@pytest.mark.parametrize("file_bytes", [700, 3_000, 40_000, 150_000])
def test_a_limit_on_the_size_of_files(
    file_bytes: int,
    small_source: Path,
    calibration: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    forks: Forks,
) -> None:
    """The kernel itself refuses: for the journal, for a record, for the activations, for a shard."""
    out = tmp_path / "out"
    faults = {"0": {"file_bytes": file_bytes}}
    code, log = run(forks, small_source, out, calibration, faults=faults)
    assert code == 2, log
    assert "DiskSpaceError" in log.splitlines()[-1]
    assert "ulimit -f allows; free some space and run again with resume=True" in log.splitlines()[-1]
    code, log = run(forks, small_source, out, calibration, resume=True)
    assert code == 0, log
    assert contents(out) == whole


def test_the_command_says_how_to_continue(
    small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, recipe = tmp_path / "out", tmp_path / "recipe.toml"
    recipe.write_text(
        "group_size = 32\n[gptq]\nscale_candidates = 2\n"
        "[calibration]\nnum_sequences = 4\nmax_sequence_tokens = 64\n"
    )
    arguments = ["quantize", str(small_source), str(out), "--recipe", str(recipe)]
    arguments += ["--calibration", str(calibration)]

    def start(*extra: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMAND, *arguments, *extra]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
        return subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    first = start()
    while first.poll() is None and num_lines(out / ".moe4" / "journal.jsonl") < 2:
        time.sleep(0.001)
    first.send_signal(signal.SIGINT)
    err = first.communicate()[1]
    assert first.returncode == 130
    assert err.splitlines()[-1] == f"moe4: interrupted; continue with: moe4 {' '.join(arguments)} --resume"
    assert "Traceback" not in err
    assert not (out / "config.json").exists()
    second = start("--resume")
    out_text, err = second.communicate()
    assert second.returncode == 0
    assert re.search(r"continuing after [123] of 4 shards", err)
    assert out_text.startswith("size ")
    assert contents(out) == whole


def num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.fixture
def unfinished(
    small_source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that stopped after its second shard."""
    return interrupt_after(2, small_source, calibration, tmp_path / "out", RECIPE, monkeypatch)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def stretch(path: Path) -> None:
    """Make a file a sparse terabyte, which nobody should read to the end."""
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda path: os.truncate(path, 1000), stretch])
@pytest.mark.parametrize("num_done", [1, 2])
def test_damaged_activations_are_made_again(
    damage: Any,
    num_done: int,
    small_source: Path,
    calibration: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = interrupt_after(num_done, small_source, calibration, tmp_path / "out", RECIPE, monkeypatch)
    path = out / ".moe4" / f"hidden-{num_done:05d}.bin"
    damage(path)
    capfd.readouterr()
    run_quantize(small_source, out, RECIPE, calibration, resume=True)
    lines = capfd.readouterr().err.splitlines()
    state = "missing" if damage is Path.unlink else "damaged"
    assert f"{path} is {state}: layer {num_done}, which makes it, is done again" in lines
    assert contents(out) == whole


def test_activations_that_nothing_can_make_again(
    small_source: Path, calibration: Path, unfinished: Path
) -> None:
    flip_a_bit(unfinished / ".moe4" / "hidden-00001.bin")
    flip_a_bit(unfinished / ".moe4" / "hidden-00002.bin")
    with pytest.raises(ResumeError, match=r"hidden-00002\.bin and hidden-00001\.bin are missing or damaged"):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)


@pytest.mark.parametrize("damage", [flip_a_bit, stretch])
def test_a_damaged_record_is_noticed(
    damage: Any, small_source: Path, calibration: Path, unfinished: Path
) -> None:
    damage(unfinished / ".moe4" / "layer-00001.json")
    with pytest.raises(ResumeError, match=r"layer-00001\.json is missing or damaged; begin again"):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("mine.txt", Path.touch, "a file"),
        ("tokenizer.json", lambda path: path.symlink_to("/dev/null"), "a link"),
        ("model-00003-of-00004.safetensors", Path.mkdir, "a folder"),
    ],
)
def test_what_another_put_into_the_folder_is_left_alone(
    name: str,
    make: Callable[[Path], None],
    kind: str,
    small_source: Path,
    calibration: Path,
    unfinished: Path,
) -> None:
    make(unfinished / name)
    with pytest.raises(OutputError, match=rf"{name} is {kind} that moe4 did not make; move it away"):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)
    assert os.path.lexists(unfinished / name)


def test_without_resume_nothing_is_touched(small_source: Path, calibration: Path, unfinished: Path) -> None:
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    with pytest.raises(OutputNotEmptyError, match="holds an unfinished run; add resume=True"):
        run_quantize(small_source, unfinished, RECIPE, calibration)
    assert before == {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}


def test_resume_continues_and_does_not_repeat(
    small_source: Path,
    calibration: Path,
    unfinished: Path,
    whole: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)
    err = capfd.readouterr().err
    assert "continuing after 2 of 4 shards" in err
    assert "layer 1 (2 of 3 done)" not in err
    assert "layer 2 (3 of 3 done)" in err
    assert contents(unfinished) == whole


def test_resume_with_another_recipe(small_source: Path, calibration: Path, unfinished: Path) -> None:
    other = override(RECIPE, group_size=64, gptq=Gptq(scale_candidates=3))
    words = (
        r"begun with another recipe \(gptq.scale_candidates 2, now 3; group_size 32, now 64\); resume with"
    )
    with pytest.raises(ResumeError, match=words):
        run_quantize(small_source, unfinished, other, calibration, resume=True)


def test_resume_with_another_source(
    small_source: Path, fp8_source: Path, calibration: Path, unfinished: Path
) -> None:
    with pytest.raises(ResumeError, match="begun with another source checkpoint"):
        run_quantize(fp8_source, unfinished, RECIPE, calibration, resume=True)


def test_resume_with_other_weights_of_the_same_shapes(
    small_source: Path, calibration: Path, unfinished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_source, other)
    (shard,) = other.glob("*.safetensors")
    save_file({name: -tensor for name, tensor in load_file(shard).items()}, shard, metadata={"format": "pt"})
    with pytest.raises(ResumeError, match="begun with another source checkpoint"):
        run_quantize(other, unfinished, RECIPE, calibration, resume=True)


def test_resume_with_another_calibration(
    small_source: Path, calibration: Path, unfinished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(calibration.read_text().replace("apples", "pears"))
    with pytest.raises(ResumeError, match="begun with another calibration data"):
        run_quantize(small_source, unfinished, RECIPE, other, resume=True)


def test_resume_with_another_version_of_moe4_and_more(
    small_source: Path,
    calibration: Path,
    unfinished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_module("moe4.quantize.reporting.layer_record"), "__version__", "9.9")
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "short"}')
    words = (
        r"begun with another version of moe4 \(\d\S*, now 9\.9\) and another calibration data; resume with"
    )
    with pytest.raises(ResumeError, match=words):
        run_quantize(small_source, unfinished, RECIPE, other, resume=True)


def test_resume_with_another_version_of_torch_says_so(
    small_source: Path,
    calibration: Path,
    unfinished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from moe4.quantize.reporting.layer_record import software_versions
    from moe4.quantize.run import lead

    monkeypatch.setattr(lead, "software_versions", lambda: {**software_versions(), "torch": "0"})
    run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)
    assert "; other versions may round differently" in capfd.readouterr().err


def test_resume_with_a_damaged_shard(small_source: Path, calibration: Path, unfinished: Path) -> None:
    shard = unfinished / "model-00002-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ResumeError, match="is not the file that was committed"):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)


def test_a_torn_journal_line_is_forgotten(
    small_source: Path, calibration: Path, unfinished: Path, whole: dict[str, bytes]
) -> None:
    journal = unfinished / ".moe4" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"shard": "model-00003-of')
    run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)
    assert contents(unfinished) == whole


def test_a_damaged_journal_is_refused(small_source: Path, calibration: Path, unfinished: Path) -> None:
    journal = unfinished / ".moe4" / "journal.jsonl"
    journal.write_bytes(b"[]\n" + journal.read_bytes())
    with pytest.raises(ResumeError, match="is damaged"):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)


def test_resume_into_an_empty_folder_begins(
    small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    (tmp_path / "out").mkdir()
    run_quantize(small_source, tmp_path / "out", RECIPE, calibration, resume=True)
    assert contents(tmp_path / "out") == whole


def whole_files(folder: Path) -> dict[Path, bytes]:
    """Return every file but those that a killed run left half written, which any run removes."""
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"
    }


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MOE4_PRODUCTS", "float32", r'products "bfloat16", now "float32"'),
        ("MOE4_COLUMNS", "torch", r'columns "\w+", now "torch"'),
        ("MKL_CBWR", "COMPATIBLE", r'variables.MKL_CBWR null, now "COMPATIBLE"'),
    ],
)
def test_resume_in_another_environment(
    variable: str,
    value: str,
    words: str,
    small_source: Path,
    calibration: Path,
    unfinished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable == "MOE4_PRODUCTS" and not HAS_BF16:
        pytest.skip("needs a CPU with AVX512-BF16")
    before = whole_files(unfinished)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ResumeError, match=rf"begun with another environment \({words}\); resume with"):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)
    assert before == whole_files(unfinished)


def test_resume_with_another_torch(
    small_source: Path, calibration: Path, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("moe4.quantize.run.environment"), "version", lambda name: "9.9")
    with pytest.raises(ResumeError, match=r'torch "[\d.+a-z]+", now "9\.9"; transformers "[\d.]+", now'):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)


def test_a_finished_release_of_another_environment(
    small_source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = run_quantize(small_source, out, RECIPE, calibration)
    environment = report["fingerprint"]["environment"]
    assert (environment["device"], environment["threads"]) == ("cpu", 1)
    assert run_quantize(small_source, out, RECIPE, calibration, resume=True) == report
    monkeypatch.setenv("MOE4_COLUMNS", "torch")
    with pytest.raises(ResumeError, match="holds a finished release of another environment"):
        run_quantize(small_source, out, RECIPE, calibration, resume=True)


def test_a_choice_that_is_none_is_known_before_anything_is_written(
    small_source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE4_PRODUCTS", "int8")
    with pytest.raises(KernelError, match=r"MOE4_PRODUCTS: expected one of bf16, float32 .*found 'int8'"):
        run_quantize(small_source, tmp_path / "out", RECIPE, calibration)
    assert not (tmp_path / "out").exists()


def test_resume_with_another_chat_template(
    small_source: Path, calibration: Path, unfinished: Path, tmp_path: Path
) -> None:
    """As it was when the run began, so is it in the release, whenever it is copied."""
    other = tmp_path / "other"
    shutil.copytree(small_source, other)
    (other / "generation_config.json").write_text("{}")
    (other / "LICENSE").write_text("another")
    with pytest.raises(ResumeError, match=r"another side file \(LICENSE, generation_config\.json\); resume"):
        run_quantize(other, unfinished, RECIPE, calibration, resume=True)


@pytest.fixture
def drawing_source(small_source: Path, tmp_path: Path) -> Path:
    """A source whose chat template writes another number each time, as others write the time."""
    source = shutil.copytree(small_source, tmp_path / "drawing")
    template = source / "chat_template.jinja"
    template.write_text("{{ range(99999) | random }}" + template.read_text())
    return source


def test_a_template_that_writes_something_else_each_time_can_be_resumed(
    drawing_source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupt_after(2, drawing_source, calibration, out, RECIPE, monkeypatch)
    begun = json.loads((out / ".moe4" / "tokens.json").read_text())
    report = run_quantize(drawing_source, out, RECIPE, calibration, resume=True)
    assert report["calibration"]["num_tokens"] == sum(map(len, begun["corpus"]["sequences"]))
    assert not (out / ".moe4").exists()
    assert run_quantize(drawing_source, out, RECIPE, calibration, resume=True) == report


def test_such_a_run_without_its_tokens_is_refused(
    drawing_source: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupt_after(1, drawing_source, calibration, out, RECIPE, monkeypatch)
    tokens = out / ".moe4" / "tokens.json"
    for damage in (lambda: tokens.write_text("{"), lambda: tokens.unlink()):
        damage()
        with pytest.raises(ResumeError, match="begun with another set of calibration tokens"):
            run_quantize(drawing_source, out, RECIPE, calibration, resume=True)


@pytest.mark.parametrize("data", [None, "{", "[]", '{"inputs": 3}', '{"inputs": "x", "corpus": null}'])
def test_tokens_that_are_gone_are_made_again(
    small_source: Path, calibration: Path, unfinished: Path, whole: dict[str, bytes], data: str | None
) -> None:
    tokens = unfinished / ".moe4" / "tokens.json"
    tokens.unlink() if data is None else tokens.write_text(data)
    run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)
    assert contents(unfinished) == whole


def test_kept_tokens_that_were_changed_are_refused(
    small_source: Path, calibration: Path, unfinished: Path
) -> None:
    tokens = unfinished / ".moe4" / "tokens.json"
    kept = json.loads(tokens.read_text())
    kept["corpus"]["sequences"][0][0] += 1
    tokens.write_text(json.dumps(kept))
    with pytest.raises(ResumeError, match="another set of calibration tokens"):
        run_quantize(small_source, unfinished, RECIPE, calibration, resume=True)
