"""--family-as-is: a family that is not listed is tried on a small random model of it, before any work."""

import json
from pathlib import Path

import pytest
import torch
from family_models import write_source
from release_tools import run_cli

from moe4.checkpoint.index import read_config
from moe4.config import read
from moe4.forward import trial
from moe4.model import surroundings

OTHER = "granitemoeshared"  # transformers has it, and it is not listed


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("other") / "source", OTHER)


def test_it_is_refused_unless_asked_for_by_name(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(other), str(tmp_path / "out"), "--method", "rtn"]
    code, _, err = run_cli(command, monkeypatch, capfd)
    assert code == 2
    assert f"model_type '{OTHER}' is not supported" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_it_is_planned_quantized_and_verified(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for command in (
        ["plan", str(other), "--method", "rtn", "--family-as-is", "--no-time"],
        ["quantize", str(other), str(out), "--method", "rtn", "--family-as-is"],
        ["verify", str(out), "--source", str(other), "--family-as-is"],
    ):
        code, _, err = run_cli(command, monkeypatch, capfd)
        assert code == 0, err
    assert json.loads((out / "config.json").read_text())["model_type"] == OTHER


def test_its_release_is_measured(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "out", tmp_path / "text.jsonl"
    text.write_text('{"text": "Twelve engineers share one long table."}\n' * 2)
    code, _, err = run_cli(
        ["quantize", str(other), str(out), "--method", "rtn", "--family-as-is"], monkeypatch, capfd
    )
    assert code == 0, err
    for command in (
        ["compare", str(other), str(out), "--data", str(text), "--num-sequences", "2"],
        ["coverage", str(other), "--calibration", str(text)],
        ["probe", str(out), "--source", str(other), "--force"],
        ["power", str(other), str(out), "--data", str(text), "--num-sequences", "2"],
    ):
        code, _, err = run_cli(command, monkeypatch, capfd)
        assert code == 2, command
        assert f"model_type '{OTHER}' is not supported" in err
        code, _, err = run_cli([*command, "--family-as-is"], monkeypatch, capfd)
        assert code == 0, err


def test_one_that_comes_out_differently_is_refused_before_any_work(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = surroundings.Surroundings.begin
    monkeypatch.setattr(surroundings.Surroundings, "begin", lambda self, states: 1.1 * real(self, states))
    command = ["quantize", str(other), str(tmp_path / "out"), "--method", "rtn", "--family-as-is"]
    code, _, err = run_cli(command, monkeypatch, capfd)
    assert code == 2
    assert "off transformers' own" in err
    assert not (tmp_path / "out").exists()


def test_small_models_keep_a_layer_of_each_kind() -> None:
    types = ["full", "full", "full", "full", "full", "sliding"]
    small = trial._shrunk(
        {"num_hidden_layers": 6, "layer_types": types, "hidden_size": 4096}, trial.ATTEMPTS[0]
    )
    assert small["layer_types"] == ["full", "full", "full", "full", "sliding"]
    assert small["num_hidden_layers"] == 5
    assert small["hidden_size"] == 64


def test_layers_may_be_a_pattern_or_a_list_that_alone_counts_them() -> None:
    pattern = {"num_hidden_layers": 7, "hybrid_override_pattern": "MEMEM*E", "mlp_hidden_act": "silu"}
    small = trial._shrunk(pattern, trial.ATTEMPTS[0])
    assert small == {"num_hidden_layers": 5, "hybrid_override_pattern": "MEME*", "mlp_hidden_act": "silu"}
    small = trial._shrunk({"layers_block_type": ["moe"] * 5 + ["full_attention"]}, trial.ATTEMPTS[0])
    assert small["layers_block_type"] == ["moe"] * 4 + ["full_attention"]


@pytest.mark.parametrize("family", ["nemotron_h", "llama4_text", "deepseek_v4"])
def test_the_trial_agrees_where_experts_and_routes_are_of_another_kind(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gate, inputs that the router scales, routes by token ids: as if the family were not listed."""
    monkeypatch.setattr(read, "BY_TRANSFORMERS", read.BY_TRANSFORMERS - {family})
    config = read_config(write_source(tmp_path / "source", family), family_as_is=True)
    assert config.is_tried
    trial.try_family(config)


def test_a_trial_leaves_random_numbers_as_they_were(other: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trial.try_family(read_config(other, family_as_is=True))
    assert torch.equal(torch.rand(3), expected)
