"""What `moe4 quantize` writes, read by safetensors, compressed-tensors and transformers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from release_tools import (
    decompress,
    keep_boundaries,
    load_folder,
    run_cli,
    run_quantize,
    tokenize,
    transformers_model,
)
from safetensors import safe_open

from moe4.recipe import Calibration, Gptq, Recipe
from moe4.verify.checks import verify


def test_unquantized_tensors_and_side_files_are_the_sources_bytes(source: Path, release: Path) -> None:
    before, after = load_folder(source), load_folder(release)
    for name, tensor in before.items():
        if ".mlp.experts." in name:
            assert name not in after
        else:
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8))
    for name in ("LICENSE", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (release / name).read_bytes() == (source / name).read_bytes()
    assert not (release / ".moe4").exists()


def test_the_index_covers_the_shards_and_the_config_is_the_sources_but_for_quantization(
    source: Path, release: Path
) -> None:
    index = json.loads((release / "model.safetensors.index.json").read_text())
    total = 0
    for path in release.glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            for name in shard.keys():  # noqa: SIM118 (not a mapping)
                assert index["weight_map"][name] == path.name
                total += shard.get_tensor(name).nbytes
    assert index["metadata"]["total_size"] == total
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, release))
    quantization = after.pop("quantization_config")
    assert after == before
    assert quantization["config_groups"]["group_0"]["weights"]["actorder"] == "weight"


def test_every_experts_run_starts_on_a_page(release: Path) -> None:
    for path in sorted(release.glob("*.safetensors"))[1:3]:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        offsets = {
            name: start + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"
        }
        layer = int(path.name[6:11]) - 1
        previous = None
        for expert in range(8):
            names = [
                f"model.layers.{layer}.mlp.experts.{expert}.{p}_proj.weight_packed"
                for p in ("gate", "up", "down")
            ]
            run_start, *others = (offsets[name] for name in names)
            assert run_start % 4096 == 0
            assert others == [run_start + 16384, run_start + 32768]
            assert previous is None or run_start == previous + 49152
            previous = run_start


def test_gptq_beats_round_to_nearest_on_the_experts_outputs(release: Path) -> None:
    report = json.loads((release / "moe4-report.json").read_text())
    assert report["summary"]["num_matrices"] == 2 * 8 * 3
    assert report["summary"]["mean_error"] < 0.6 * report["summary"]["mean_rtn_error"]
    for layer in report["layers"]:
        for expert in layer["experts"]:
            for part in ("gate", "up", "down"):
                assert expert[part]["error"] <= expert[part]["rtn_error"]
    tokens = [sum(expert["num_tokens"] for expert in layer["experts"]) for layer in report["layers"]]
    assert tokens == [0, *[2 * report["calibration"]["num_tokens"]] * 2]


@pytest.mark.parametrize("targets", [("experts",), ("experts", "attention", "shared_experts", "dense_mlps")])
def test_what_is_calibrated_is_what_is_served(
    source: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    targets: tuple[Any, ...],
) -> None:
    """Run the whole model on the release's decoded weights: its hidden states are those the run passed on."""
    kept = keep_boundaries(monkeypatch)
    recipe = Recipe(targets=targets, calibration=Calibration(compute_dtype="float32", num_sequences=6))
    out = tmp_path / "out"
    run_quantize(source, out, recipe, calibration)
    weights = {name: weight.float() for name, weight in decompress(out, exact=True).items()}
    model = transformers_model(out, weights, torch.float32)
    sequences = tokenize(source, calibration, 6)
    with torch.inference_mode():
        states = [
            model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in sequences
        ]
    for layer in (1, 2):
        found = torch.frombuffer(bytearray(kept[f"hidden-{layer:05d}.bin"]), dtype=torch.float32)
        expected = torch.cat([state[layer][0] for state in states])
        found = found.view(expected.shape)
        distance = (found - expected).norm(dim=1) / expected.norm(dim=1)
        # Sums of a few hundred float32 products in another order, through three layers.
        assert distance.max() < 1e-5
    layers = json.loads((out / "moe4-report.json").read_text())["layers"]
    linears = [record for layer in layers for record in layer["linears"].values()]
    assert bool(linears) == (len(targets) > 1)
    for record in linears:  # without a Hessian they would fall back to round to nearest
        assert "fallback" not in record
        assert record["error"] < 0.95 * record["rtn_error"]


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_fp8_source_in_many_shards(fp8_source: Path, calibration: Path, tmp_path: Path, method: Any) -> None:
    out = tmp_path / "out"
    recipe = Recipe(method=method, calibration=Calibration(num_sequences=8))
    run_quantize(fp8_source, out, recipe, calibration)
    result = verify(out, fp8_source)
    assert result.problems == []
    stored, after = load_folder(fp8_source), load_folder(out)
    assert not any(name.endswith(("_scale_inv", "inv_freq")) for name in after)
    assert after["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    weight, scales = stored[name].float(), stored[f"{name}_scale_inv"]
    for row in range(0, weight.shape[0], 128):
        for column in range(0, weight.shape[1], 128):
            weight[row : row + 128, column : column + 128] *= scales[row // 128, column // 128]
    assert after[name].dtype == torch.bfloat16
    assert torch.equal(after[name], weight.to(torch.bfloat16))


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_rtn_is_plain_round_to_nearest(source: Path, tmp_path: Path, group_size: int) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    out = tmp_path / "out"
    report = run_quantize(source, out, Recipe(method="rtn", group_size=group_size))
    assert report["calibration"] is None
    decoded, before = decompress(out), load_folder(source)
    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group_size)
    for name in [name for name in before if ".mlp.experts." in name]:
        W = before[name].float()
        grouped = W.view(W.shape[0], -1, group_size)
        scales, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        expected = fake_quantize(W, scales.to(torch.bfloat16).float(), zero, args)
        assert torch.equal(decoded[name], expected.to(torch.bfloat16))


def test_options_change_what_they_say(source: Path, calibration: Path, tmp_path: Path) -> None:
    def errors(name: str, **options: Any) -> dict[str, Any]:
        settings = Calibration(num_sequences=6)
        recipe = Recipe(gptq=Gptq(**options), calibration=settings)
        out = tmp_path / name
        run_quantize(source, out, recipe, calibration)
        scales = [t for name, t in load_folder(out).items() if name.endswith("weight_scale")]
        report = json.loads((out / "moe4-report.json").read_text())
        return {
            "negative": any(bool((t < 0).any()) for t in scales),
            "error": report["summary"]["mean_error"],
        }

    default = errors("default")
    unsigned = errors("unsigned", signed_scales=False)
    unordered = errors("unordered", activation_order=False)
    gated = errors("gated", hessian_weighting="gate")
    assert default["negative"]
    assert not unsigned["negative"]
    assert len({default["error"], unsigned["error"], unordered["error"], gated["error"]}) == 4
    assert default["error"] < unsigned["error"]
    assert all(math.isfinite(item["error"]) for item in (default, unsigned, unordered, gated))


def test_the_group_size_that_was_chosen_is_what_is_recorded(release: Path) -> None:
    report = json.loads((release / "moe4-report.json").read_text())
    config = json.loads((release / "config.json").read_text())
    assert report["recipe"]["group_size"] == 64  # the experts' inner width is 128
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] == 64


def test_asked_for_groups_are_kept_and_warned_of(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    capfd.readouterr()
    report = run_quantize(source, out, Recipe(method="rtn", group_size=128))
    assert report["recipe"]["group_size"] == 128
    warning = "the experts' inner width, 128, is one group of 128 codes"
    assert f"warning: {warning}" in " ".join(capfd.readouterr().err.split())
    code, text, _ = run_cli(["verify", str(out)], monkeypatch, capfd)
    assert code == 0, "a warning is no error"
    assert f"warning   {warning}" in text
    assert "use --group-size 64 or 32" in text
