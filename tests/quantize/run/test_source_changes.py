"""A source that changed between a kill and --resume is noticed; one that was only moved goes on."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from release_tools import contents, interrupt_after, run_quantize
from safetensors.torch import load_file

from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.source import NUM_SAMPLES, SAMPLE_BYTES, Checkpoint
from moe4.errors import CheckpointError, ResumeError
from moe4.recipe import Calibration, Gptq, Recipe
from moe4.verify.checks import verify

RECIPE = Recipe(
    group_size=32,
    gptq=Gptq(scale_candidates=2),
    calibration=Calibration(num_sequences=4, max_sequence_tokens=64),
)
READ, UNREAD = "model.layers.1.mlp.experts.2.up_proj.weight", "model.layers.2.mlp.experts.3.down_proj.weight"


@pytest.fixture
def mine(small_source: Path, tmp_path: Path) -> Path:
    """A copy of the source that may be changed."""
    shutil.copytree(small_source, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def unfinished(mine: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of that copy that stopped after its second layer."""
    return interrupt_after(2, mine, calibration, tmp_path / "out", RECIPE, monkeypatch)


def change_a_byte(folder: Path, name: str) -> None:
    """Change a byte of a tensor that is in no sample, in place."""
    stored = Checkpoint(folder).tensors[name]
    size = stored.path.stat().st_size
    starts = [(size - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1) for number in range(NUM_SAMPLES)]
    place = next(
        place
        for place in range(stored.offset, stored.offset + stored.spec.num_bytes, 2)
        if not any(start <= place < start + SAMPLE_BYTES for start in starts)
    )
    before = Checkpoint(folder).digest()
    with stored.path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    assert Checkpoint(folder).digest() == before


def resume(source: Path, out: Path, calibration: Path) -> Any:
    return run_quantize(source, out, RECIPE, calibration, resume=True)


@pytest.mark.parametrize("keeps_time", [False, True])
def test_what_was_read_has_changed(
    keeps_time: bool, mine: Path, calibration: Path, unfinished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (shard,) = mine.glob("*.safetensors")
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    change_a_byte(mine, READ)
    if keeps_time:
        os.utime(shard, ns=times)
    with pytest.raises(ResumeError, match=rf"{READ} has changed since this run read it; put the old"):
        resume(mine, unfinished, calibration)
    assert "1 of 1 files of the source are other files than when the run began" in capfd.readouterr().err


def test_what_was_not_read_was_written_to(mine: Path, calibration: Path, unfinished: Path) -> None:
    change_a_byte(mine, UNREAD)
    words = r"model-00001.* was written to after the run began, before model\.layers\.2.* was read from it"
    with pytest.raises(ResumeError, match=words):
        resume(mine, unfinished, calibration)


def test_a_source_that_was_moved_goes_on(
    small_source: Path, mine: Path, calibration: Path, unfinished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    moved = mine.with_name("moved")
    shutil.copytree(mine, moved)
    shutil.rmtree(mine)
    resume(moved, unfinished, calibration)
    assert "tensors again to compare" in capfd.readouterr().err
    whole = unfinished.with_name("whole")
    run_quantize(small_source, whole, RECIPE, calibration)
    assert contents(unfinished) == contents(whole)
    assert verify(unfinished, small_source).problems == []


def test_a_copy_with_a_change_in_what_was_read(mine: Path, calibration: Path, unfinished: Path) -> None:
    copy = mine.with_name("copy")
    shutil.copytree(mine, copy)
    change_a_byte(copy, READ)
    with pytest.raises(ResumeError, match=rf"copy/model-00001\S*: {READ} has changed since this run read it"):
        resume(copy, unfinished, calibration)


def test_a_copy_with_a_change_in_what_was_not_read(mine: Path, calibration: Path, unfinished: Path) -> None:
    """The release is that of the copy, whole: nothing in it is of the other."""
    copy = mine.with_name("copy")
    shutil.copytree(mine, copy)
    change_a_byte(copy, UNREAD)
    resume(copy, unfinished, calibration)
    whole = unfinished.with_name("whole")
    run_quantize(copy, whole, RECIPE, calibration)
    assert contents(unfinished) == contents(whole)


def test_an_untouched_source_is_not_read_again(
    mine: Path, calibration: Path, unfinished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    resume(mine, unfinished, calibration)
    assert "again to compare" not in capfd.readouterr().err


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("kind", ["source", "fp8_source"])
def test_the_report_holds_every_tensors_hash(
    kind: str, method: str, calibration: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(kind)
    recipe = Recipe(method=method, gptq=RECIPE.gptq, calibration=RECIPE.calibration)
    report: Any = run_quantize(source, tmp_path / "out", recipe, calibration)
    state = {name: t for path in source.glob("*.safetensors") for name, t in load_file(path).items()}
    expected = {}
    for name, tensor in state.items():
        if name.endswith(("_scale_inv", ".inv_freq")):
            continue
        parts = [tensor, *([state[f"{name}_scale_inv"]] if f"{name}_scale_inv" in state else [])]
        data = b"".join(part.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for part in parts)
        expected[name] = hashlib.sha256(data).hexdigest()
    assert report["source"]["tensors"] == expected


def test_verify_names_the_tensor_that_changed(mine: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_quantize(mine, out, RECIPE, calibration)
    change_a_byte(mine, READ)
    problems = verify(out, mine).problems
    assert problems == [f"{READ} of the source is not what the release was made of: its SHA-256 differs"]


def test_a_tensor_that_is_read_twice_must_be_the_same() -> None:
    log = ReadLog()
    log.add("a", [b"x", b"y"])
    log.add("a", [b"xy"])
    assert log.take() == {"a": hashlib.sha256(b"xy").hexdigest()}
    assert log.take() == {}
    with pytest.raises(CheckpointError, match="a of the source has changed since"):
        log.add("a", [b"xz"])
