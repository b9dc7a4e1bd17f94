"""gpt-oss as it is published, in MXFP4, through the commands: its release is that of its decoded weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from family_models import write_source
from release_tools import run_cli
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors


def to_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return blocks and scales of experts [experts, in, out], as gpt-oss lays them out."""
    turned = weight.transpose(1, 2).float()
    experts, rows, columns = turned.shape
    groups = turned.reshape(experts, rows, columns // 32, 32)
    exponents = torch.ceil(torch.log2(groups.abs().amax(-1) / 6))
    codes = pack_fp4_to_uint8((groups / 2.0 ** exponents[..., None]).reshape(experts * rows, columns))
    return codes.view(experts, rows, columns // 32, 16), (exponents + 127).to(torch.uint8)


def write_published(folder: Path, plain: Path) -> None:
    """Write a random gpt-oss in MXFP4, and what transformers decodes of it."""
    write_source(folder, "gpt_oss")
    state = load_file(folder / "model.safetensors")
    decoded = dict(state)
    for name in list(state):
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            blocks, scales = to_mxfp4(state.pop(name))
            state |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            decoded[name] = convert_moe_packed_tensors(blocks, scales)
    shutil.copytree(folder, plain)
    save_file(decoded, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))


def test_its_release_is_that_of_its_decoded_weights(
    tmp_path: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    published, plain = tmp_path / "published", tmp_path / "plain"
    write_published(published, plain)
    shards = []
    for source in (published, plain):
        out = tmp_path / f"{source.name}-out"
        settings = ["--family-as-is", "--group-size", "32", "--calibration", str(calibration)]
        for command in (
            ["plan", str(source), "--no-time", *settings],
            ["quantize", str(source), str(out), *settings],
            ["verify", str(out), "--source", str(source), "--family-as-is"],
        ):
            code, text, err = run_cli(command, monkeypatch, capfd)
            assert code == 0, text + err
            is_said = "quantized again" in text + err or "codes already" in text + err
            assert is_said is (source == published and command[0] != "verify")
        shards.append({path.name: path.read_bytes() for path in out.glob("*.safetensors")})
    assert shards[0] == shards[1]


def test_blocks_without_scales_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published"
    write_published(published, tmp_path / "plain")
    state = load_file(published / "model.safetensors")
    del state["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(state, published / "model.safetensors", metadata={"format": "pt"})
    arguments = ["quantize", str(published), str(tmp_path / "out"), "--family-as-is", "--method", "rtn"]
    code, _, err = run_cli(arguments, monkeypatch, capfd)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("moe4: error")]
    assert "layers.1.mlp.experts.down_proj_scales must be U8" in line
    assert not (tmp_path / "out").exists()
