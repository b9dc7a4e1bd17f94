"""`moe4 serve` asks itself: a right release is served and passes again from outside, a damaged one is not."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_fixtures import write_random_model, write_rounded_release
from safetensors.torch import load_file, save_file

from moe4.probe import check
from moe4.probe.ask import script_text
from moe4.probe.make import ProbeOptions, make_probe

pytestmark = pytest.mark.vllm

MOE4 = [sys.executable, "-c", "from moe4.cli.main import main; main()"]
OPTIONS = ["--port", "0", "--json", "--max-model-len", "1024"]
SMALL = {"num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    release = write_rounded_release(write_random_model(folder / "source", **SMALL), folder / "release", 32)
    make_probe(ProbeOptions(release=release), lambda line: None)
    return release


def test_a_right_release_passes(release: Path, tmp_path: Path) -> None:
    server = subprocess.Popen(
        [*MOE4, "serve", str(release), *OPTIONS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        ready = server.stdout.readline()
        assert ready, server.communicate()[1]
        url = json.loads(ready)["url"]
        (tmp_path / "check.py").write_text(script_text())
        alone = [sys.executable, "-I", "-S", str(tmp_path / "check.py"), str(release), url, "--json"]
        result = json.loads(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)
    finally:
        server.send_signal(signal.SIGINT)
        errors = server.communicate(timeout=60)[1]
    assert "probe: PASS: 64 prompts: shift typical " in errors
    assert result["ok"], check.describe(result)
    assert result["num_asked"] == 64


def test_a_damaged_release_is_noticed(release: Path, tmp_path: Path) -> None:
    """The scales of one layer's gates and ups lie one row off."""
    damaged = tmp_path / "damaged"
    shutil.copytree(release, damaged)
    (shard,) = damaged.glob("*.safetensors")
    tensors = load_file(shard)
    for name, tensor in tensors.items():
        if ".layers.1.mlp.experts." in name and name.endswith(
            ("gate_proj.weight_scale", "up_proj.weight_scale")
        ):
            tensors[name] = torch.roll(tensor, 1, 0).contiguous()
    save_file(tensors, shard, metadata={"format": "pt"})
    command = [*MOE4, "serve", str(damaged), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=60)
    assert ready["probe"] is False
    assert "probe: FAIL: " in err
    assert "moe4: this server's answers are not the release's, but it keeps serving" in err
