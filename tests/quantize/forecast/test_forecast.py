"""`moe4 plan` tells beforehand what `moe4 quantize` writes and needs, and everything it would trip over."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from release_tools import load_folder, run_cli
from safetensors.torch import load_file, save_file
from shared_data import shared_path
from transformers import AutoConfig, AutoModelForCausalLM

REFERENCE = ("--calibration", "reference")
SMALL_MIXTRAL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "head_dim": 64,
}


def plan(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, object]]:
    code, out, err = run_cli(["plan", *arguments, "--json"], monkeypatch, capfd)
    assert out, err
    return code, json.loads(out)


def test_kimi_k2_from_its_config_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(shared_path("configs", "kimi-k2-instruct", "config.json"), tmp_path)
    _, result = plan([str(tmp_path), "--no-time"], monkeypatch, capfd)
    release = result["release"]
    # What Red Hat's card of the same release says: 146B params, BF16 · I64 · F32 · I32.
    assert round(release["num_elements"] / 1e7) == 14649
    assert round(release["num_bytes"] / 1e7) == 54664
    assert set(release["elements"]) == {"BF16", "I64", "F32", "I32"}
    assert release["num_quantized"] == 60 * 384 * 3
    assert not result["source"]["has_weights"]
    assert round(result["source"]["num_bytes"] / 1e10) == 103
    assert result["memory"]["peak_bytes"] < 5.5e9


@pytest.mark.parametrize("name", ["whole", "config alone", "fused", "damaged"])
def test_without_torch_all_but_tokens_and_time_is_the_same(
    name: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "source"
    if name == "config alone":
        folder.mkdir()
        config = json.loads(shared_path("configs", "kimi-k2-instruct", "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    else:
        shutil.copytree(source, folder)
    if name == "fused":
        shutil.rmtree(folder)
        config = AutoConfig.for_model("mixtral", **SMALL_MIXTRAL)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder, save_original_format=False)
    if name == "damaged":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    arguments = [str(folder), "--no-time", "--method", "rtn"]
    code, whole = plan(arguments, monkeypatch, capfd)
    monkeypatch.setattr("moe4.extras.is_installed", lambda *_: False)
    monkeypatch.setattr("moe4.model.architecture.Network.__init__", None)
    assert plan(arguments, monkeypatch, capfd)[0] == code
    light = plan(arguments, monkeypatch, capfd)[1]
    assert whole.pop("not_checked") == []
    has_weights = name != "config alone"
    assert len(light.pop("not_checked")) == 1 + has_weights
    for result in (whole, light):  # the expected answers' tokens, and what changes by the second
        result.pop("memory")
        result.pop("disk")
        result["problems"] = [text for text in result["problems"] if "volume has" not in text]
        result["warnings"] = [text for text in result["warnings"] if "moe4-probe.json" not in text]
    assert light == whole
    text = run_cli(["plan", *arguments], monkeypatch, capfd)[1]
    assert re.search(r"^unchecked .*transformers.*: pip install 'moe4\[quantize\]'$", text, re.MULTILINE)


def test_a_model_of_several_parts_from_its_config_alone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = json.loads((source / "config.json").read_text())
    text.pop("architectures", None)
    results = []
    for name, config in {"text": text, "whole": {"model_type": "kimi_k25", "text_config": text}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        results.append(plan([str(tmp_path / name), "--no-time"], monkeypatch, capfd)[1])
    assert results[0]["release"]["num_quantized"] > 0
    assert results[1]["release"] == results[0]["release"]
    assert results[1]["problems"] == results[0]["problems"] == []


def test_what_is_not_copied_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As quantize says when it begins."""
    folder = shutil.copytree(source, tmp_path / "source")
    (folder / "figures").mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "LICENSE").write_text("x")
    arguments = [str(folder), "--no-time", "--method", "rtn"]
    _, result = plan(arguments, monkeypatch, capfd)
    assert result["release"]["files_left_out"] == ["figures/", "pytorch_model.bin"]
    _, text, _ = run_cli(["plan", *arguments], monkeypatch, capfd)
    assert "left out  figures/, pytorch_model.bin\n" in text
    _, _, err = run_cli(
        ["quantize", str(folder), str(tmp_path / "out"), "--method", "rtn"], monkeypatch, capfd
    )
    assert "not copied into the release: figures/, pytorch_model.bin\n" in err


def test_experts_of_one_group_are_warned_of(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The inner width is 128."""
    code, chosen = plan([str(source), "--no-time", *REFERENCE], monkeypatch, capfd)
    assert code == 0
    assert chosen["release"]["group_size"] == 64
    assert chosen["warnings"] == []
    code, asked = plan([str(source), "--no-time", "--group-size", "128", *REFERENCE], monkeypatch, capfd)
    assert code == 0
    assert asked["release"]["group_size"] == 128
    assert asked["warnings"] == [
        "the experts' inner width, 128, is one group of 128 codes: vLLM on GPUs gives wrong answers without "
        "moe4's plugin; use --group-size 64 or 32, or serve with moe4's plugin"
    ]
    _, text, _ = run_cli(
        ["plan", str(source), "--no-time", "--group-size", "128", *REFERENCE], monkeypatch, capfd
    )
    assert "warning   the experts' inner width, 128, is one group" in text


def test_rounding_is_timed_without_tokens(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, result = plan([str(source), "--method", "rtn"], monkeypatch, capfd)
    assert code == 0
    time = result["time"]
    assert (time["expert_tokens"], time["attention_seconds"], time["num_experts"]) == (0, 0, 16)
    assert time["seconds"] >= 0


def test_the_forecast_is_what_quantize_then_does(
    fp8_source: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    arguments = [str(fp8_source), str(out), "--calibration", str(calibration), "--num-sequences", "6"]
    code, result = plan(arguments, monkeypatch, capfd)
    assert code == 0
    assert result["problems"] == []
    assert not out.exists()
    assert result["time"]["expert_seconds"] > 0
    assert result["time"]["seconds"] > result["time"]["expert_seconds"]
    command = [sys.executable, "-m", "moe4", "quantize", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    tensors = load_folder(out)
    release = result["release"]
    assert release["num_tensors"] == len(tensors)
    assert release["num_elements"] == sum(tensor.numel() for tensor in tensors.values())
    assert release["num_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert release["num_quantized"] == report["summary"]["num_matrices"]
    names = {"torch.int32": "I32", "torch.int64": "I64", "torch.float32": "F32", "torch.bfloat16": "BF16"}
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[names[str(tensor.dtype)]] += tensor.numel()
    assert release["elements"] == elements
    counted = result["calibration"]
    assert (counted["num_tokens"], counted["exact"]) == (report["calibration"]["num_tokens"], True)
    assert f"from {report['calibration']['data']} (JSON lines): " in counted["recognized"]
    assert report["timing"]["peak_memory_bytes"] <= result["memory"]["peak_bytes"]
    written = sum(path.stat().st_size for path in out.iterdir())
    hidden = json.loads((fp8_source / "config.json").read_text())["hidden_size"]
    probe = 64 * hidden * report["probe"]["num_tokens"]  # its hidden states in float32, three passes
    assert written < result["disk"]["needed_bytes"] < written + (32 << 20) + probe


def test_every_reason_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken, out = tmp_path / "broken", tmp_path / "out"
    shutil.copytree(source, broken)
    (shard,) = broken.glob("*.safetensors")
    state = load_file(shard)
    gone, wide = (
        "model.layers.1.mlp.experts.3.up_proj.weight",
        "model.layers.2.mlp.experts.0.down_proj.weight",
    )
    del state[gone]
    state[wide] = state[wide][:, :64].contiguous()
    save_file(state, shard, metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(state, shard.name)}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    code, result = plan(
        [str(broken), str(out), "--no-time", "--memory-budget", "1MB", *REFERENCE], monkeypatch, capfd
    )
    assert code == 1
    found = "\n".join(map(str, result["problems"]))
    for part in (gone, wide, "letter.txt", "--memory-budget allows 1.0 MB"):
        assert part in found
    assert len(result["problems"]) == 4


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("100MB", r"quantizing needs up to .*, but --memory-budget allows 100\.0 MB"),
        ("plenty", r'memory_budget must be a size such as 4GiB or 500MB, found "plenty"'),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_before_work(
    budget: str,
    message: str,
    source: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(source), str(tmp_path / "out"), "--calibration", str(calibration)]
    code, out, err = run_cli(["quantize", *arguments, "--memory-budget", budget], monkeypatch, capfd)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not (tmp_path / "out").exists()
