"""Sources in every quantized form, through the commands: plan, quantize, verify --source."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import quantized_sources
from release_tools import run_cli, run_quantize

from moe4.checkpoint.source import Checkpoint
from moe4.recipe import Recipe
from moe4.verify.checks import verify

CODES = ("ct-int4", "ct-int8-packed", "ct-mxfp4", "ct-nvfp4", "ct-mixed", "fp8-fp4-experts")


def run(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    code, out, err = run_cli([*command, "--json"], monkeypatch, capfd)
    assert code == 0, err + out
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("name", quantized_sources.NAMES)
def test_every_form_makes_a_release_that_verifies(
    name: str,
    small_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    quantized_sources.write_quantized(small_source, source, name)
    settings = ["--method", "rtn", "--group-size", "64"]
    plan = run(["plan", str(source), *settings], monkeypatch, capfd)
    assert plan["ok"], plan["problems"]
    again = any("quantized again" in warning for warning in plan["warnings"])
    assert again is (name.startswith(CODES) or "int4" in name)
    run(["quantize", str(source), str(out), *settings], monkeypatch, capfd)
    checked = run(["verify", str(out), "--source", str(source)], monkeypatch, capfd)
    assert checked["problems"] == []
    plain, found = Checkpoint(small_source), Checkpoint(source)
    released = Checkpoint(out)
    for weight in plain.tensors:
        if found.is_encoded(weight):  # what was written is what was meant, not just what is decoded alike
            W = plain.load(weight).float()
            assert (found.load(weight) - W).norm() < 0.3 * W.norm(), weight
        if found.is_encoded(weight) and not released.is_encoded(weight):
            assert torch.equal(released.load(weight), found.load(weight).bfloat16())


def test_a_release_of_another_code_does_not_verify(small_source: Path, tmp_path: Path) -> None:
    """A code that is changed in the source is found."""
    source, out = tmp_path / "source", tmp_path / "out"
    quantized_sources.write_quantized(small_source, source, "ct-nvfp4")
    run_quantize(source, out, Recipe(method="rtn", group_size=64))
    assert verify(out, source).ok
    found = Checkpoint(source)
    name = next(name for name in found.tensors if found.is_encoded(name) and ".experts." in name)
    encoding = found.encoding(name)
    assert encoding is not None
    with encoding.numbers.path.open("r+b") as file:
        file.seek(encoding.numbers.offset)
        (byte,) = file.read(1)
        file.seek(encoding.numbers.offset)
        file.write(bytes([byte ^ 0x07]))
    problems = verify(out, source).problems
    assert any(f"{name} of the source is not what the release was made of" in text for text in problems)
