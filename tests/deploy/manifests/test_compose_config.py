"""What podman-compose reads in the files that `moe4 deploy compose` writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deploy.deploy_cases import K2_TINY, write_kimi_config
from model_fixtures import write_random_model, write_rounded_release
from typer.testing import CliRunner

from moe4.cli.app import app

pytest.importorskip("podman_compose", reason="podman-compose is not installed: pip install podman-compose")

KEY = "a key with $HOME, $$ and 'quotes'"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models $HOME ${X} %")
    write_random_model(folder / "source")
    return {
        "k2-tiny": K2_TINY,
        "kimi": write_kimi_config(folder / "Kimi-K2-Instruct"),
        "release": write_rounded_release(folder / "source", folder / "release"),
    }


def read_config(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `podman-compose config`, which asks podman for nothing but its version."""
    stand_in = file.parent / "bin" / "podman"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    stand_in.chmod(0o755)
    command = [sys.executable, "-m", "podman_compose", "-f", str(file), "config"]
    path = f"{stand_in.parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, env={"PATH": path, **environment}, capture_output=True, text=True, check=False
    )


FORMS = {
    "GPU": ("k2-tiny", ("--gpu", "l40s")),
    "Red Hat's image": ("k2-tiny", ("--engine", "rhaiis", "--gpu", "l40s")),
    "eight GPUs": ("kimi", ("--gpu", "h200", "--gpus", "8", "--trust-remote-code")),
    "the hub": ("k2-tiny", ("--gpu", "l40s", "--model", "hf://someone/k2-tiny", "--hf-secret", "hub")),
    "an odd folder": ("release", ("--gpu", "l40s", "--name", "k2", "--plugin")),
    "CPU": ("release", ("--engine", "cpu", "--memory", "8", "--name", "k2")),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_as_it_is_meant(form: str, releases: dict[str, Path], tmp_path: Path) -> None:
    model, options = FORMS[form]
    file = tmp_path / "compose.yaml"
    command = [
        "deploy",
        "compose",
        str(releases[model]),
        *options,
        "--api-key-secret",
        "key",
        "-o",
        str(file),
    ]
    written = CliRunner().invoke(app, command)
    assert written.exit_code == 0, written.output
    (meant,) = yaml.safe_load(file.read_text())["services"].values()
    refused = read_config(file, {})
    assert refused.returncode != 0
    assert "set it first" in refused.stderr
    (tmp_path / "bin" / "podman").unlink()
    (tmp_path / "bin").rmdir()
    read = read_config(file, {"VLLM_API_KEY": KEY, "HF_TOKEN": KEY})
    assert read.returncode == 0, read.stderr
    (service,) = yaml.safe_load(read.stdout)["services"].values()
    assert service["entrypoint"] == meant["entrypoint"]
    assert service["command"] == [word.replace("$$", "$") for word in meant["command"]]
    assert service["environment"]["VLLM_API_KEY"] == KEY
    for key in ("image", "ports", "restart", "shm_size", "mem_limit", "security_opt", "healthcheck"):
        assert service[key] == meant[key], key
    assert service.get("volumes", []) == [text.replace("$$", "$") for text in meant.get("volumes", [])]
    assert service.get("deploy") == meant.get("deploy")
