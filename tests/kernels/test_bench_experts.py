"""The benchmark's peers: what it converts for them, and what it does with those that are absent or wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def experts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module("experts.peers.llama_cpp")
    importlib.import_module("experts.oracle")
    importlib.import_module("experts.roster")
    return sys.modules["experts"]


def test_q4_0_blocks_hold_the_same_weights(experts: ModuleType) -> None:
    layer = experts.layer.Layer.make(2, 256, 128, 64, 1)
    blocks = experts.peers.llama_cpp.q4_0_blocks(layer.w13_packed, layer.w13_scale, 64)
    # As ggml's documentation has it: a half, then 16 bytes; weights i and i + 16 in the halves of byte i.
    kind = np.dtype([("d", np.float16), ("qs", np.uint8, 16)])
    block = blocks.numpy().view(kind).squeeze(-1)
    codes = np.concatenate([block["qs"] & 15, block["qs"] >> 4], axis=-1).astype(np.float64) - 8
    weights = (codes * block["d"].astype(np.float64)[..., None]).reshape(2, 256, 256)
    half = layer.w13_scale.half()
    for expert in range(2):
        expected = experts.oracle.dequantize(layer.w13_packed[expert], half[expert], 64)
        np.testing.assert_array_equal(weights[expert], expected.numpy())


def test_layer_survives_its_file(experts: ModuleType, tmp_path: Path) -> None:
    layer = experts.layer.Layer.make(2, 128, 128, 32, 2)
    layer.save(tmp_path / "layer")
    again = experts.layer.Layer.load(tmp_path / "layer")
    assert (again.group_size, again.top_k) == (32, 2)
    assert torch.equal(again.w13_packed, layer.w13_packed)
    assert torch.equal(again.w2_scale, layer.w2_scale)


def test_wrong_engine_is_named_and_leaves(experts: ModuleType) -> None:
    layer = experts.layer.Layer.make(4, 128, 128, 128, 2)
    contestant = experts.contestant.Contestant
    right = contestant(
        name="right",
        run=lambda call: (0.0, experts.oracle.reference(layer, call)),
        note="float64",
        max_error=1e-9,
    )
    factor = contestant(
        name="factor", run=lambda call: (0.0, 1.1 * right.run(call)[1]), note="", max_error=0.06
    )
    nan = contestant(name="nan", run=lambda call: (0.0, call[0] * float("nan")), note="", max_error=0.06)
    roster = experts.roster.Roster([nan, right, factor])
    roster.check(layer)
    assert [one.name for one in roster.contestants] == ["right"]
    assert list(roster.errors) == ["right"]
    assert "nan" in roster.wrong["nan"]
    assert "0.1" in roster.wrong["factor"]


def test_engine_that_is_not_installed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "python" / "bin").mkdir(parents=True)
    # This Python has torch but not the engine, so its worker starts and says that it is absent.
    interpreter = tmp_path / "python" / "bin" / "python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    sizes = ("--hidden", "256", "--inter", "256", "--experts", "4", "--top-k", "2")
    command = (sys.executable, BENCHMARKS / "bench_experts.py", *sizes, "--tokens", "1,3", "--rounds", "1")
    peers = ("--peers", "torch-int4,zentorch", "--peer-env", tmp_path)
    markdown = tmp_path / "table.md"
    done = subprocess.run(
        [*map(str, (*command, *peers, "--markdown", markdown))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["name"] for row in report["rows"]} == set(report["contestants"])
    assert "torch int4pack_mm" in report["contestants"]
    assert "zentorch cannot be imported" in report["absent"]["zentorch"]
    assert "not here: zentorch, " in markdown.read_text()
