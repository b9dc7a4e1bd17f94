"""A source in INT4, as Kimi-K2-Thinking is published: kept as it is, or quantized to coarser groups."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from release_tools import run_quantize
from safetensors.torch import load_file, save_file

from moe4.checkpoint.report_file import describe, read_report
from moe4.checkpoint.source import Checkpoint
from moe4.errors import CheckpointError, RecipeError, TensorError
from moe4.quantize.forecast.forecast import SketchedCheckpoint
from moe4.recipe import Recipe
from moe4.verify.checks import verify

WEIGHTS = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 32,
    "dynamic": False,
}
GROUP = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None, "output_activations": None}
IGNORE = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]


@pytest.fixture(scope="module")
def int4_source(small_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The routed experts alone in groups of 32, `weight_shape` in I32."""
    folder = tmp_path_factory.mktemp("int4") / "source"
    shutil.copytree(small_source, folder)
    (shard,) = folder.glob("*.safetensors")
    scheme, stored = QuantizationScheme.model_validate(GROUP), {}
    for name, tensor in load_file(shard).items():
        if ".mlp.experts." not in name:
            stored[name] = tensor
            continue
        W = tensor.bfloat16()
        scale = (W.float().view(len(W), -1, 32).abs().amax(-1) / 7).bfloat16()
        packed = PackedQuantizationCompressor.compress({"weight": W, "weight_scale": scale}, scheme)
        packed["weight_shape"] = packed["weight_shape"].int()
        stored.update({name.removesuffix("weight") + leaf: part for leaf, part in packed.items()})
    save_file(stored, shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": GROUP},
        "ignore": IGNORE,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        found.update(load_file(shard))
    return found


@pytest.mark.parametrize("method", ["gptq", "copy"])
def test_the_same_codes_pass_through(method: str, int4_source: Path, tmp_path: Path) -> None:
    report = run_quantize(int4_source, tmp_path / "out", Recipe(method=method))  # type: ignore[arg-type]
    assert (report["recipe"]["method"], report["recipe"]["group_size"]) == ("copy", 32)
    assert report["calibration"] is None
    assert "quantized_again" not in report["source"]
    ours, theirs = read_folder(tmp_path / "out"), read_folder(int4_source)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].long() if name.endswith("_shape") else ours[name], tensor), name
    assert report["summary"]["mean_error"] == 0
    result = verify(tmp_path / "out", int4_source)
    assert result.ok, result.problems
    assert result.worst_weight_errors[0].error == 0


def zero_scales(source: Path, folder: Path, value: float = 0.0) -> Path:
    """Write a copy with a whole group of one matrix, and a group of one row of another, of the scale 0."""
    shutil.copytree(source, folder)
    (shard,) = folder.glob("*.safetensors")
    state = load_file(shard)
    first, second = sorted(
        name for name in state if name.endswith("up_proj.weight_scale") and "expert" in name
    )[:2]
    state[first][:, 1] = value
    state[second][3, 0] = value
    save_file(state, shard, metadata={"format": "pt"})
    return folder


def test_scales_of_zero_pass_through(int4_source: Path, tmp_path: Path) -> None:
    """To vLLM the weights of such a group are 0, whatever the codes."""
    source = zero_scales(int4_source, tmp_path / "source")
    run_quantize(source, tmp_path / "out", Recipe())
    result = verify(tmp_path / "out", source)
    assert result.ok, result.problems
    assert verify(tmp_path / "out").ok
    problems = verify(tmp_path / "out", int4_source).problems
    assert sum(problem.startswith("the codes of ") for problem in problems) == 2


def test_scales_of_zero_are_quantized_again(int4_source: Path, tmp_path: Path) -> None:
    source = zero_scales(int4_source, tmp_path / "source")
    run_quantize(source, tmp_path / "out", Recipe(method="rtn", group_size=64))
    result = verify(tmp_path / "out", source)
    assert result.ok, result.problems


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_refused(value: float, int4_source: Path, tmp_path: Path) -> None:
    source = zero_scales(int4_source, tmp_path / "source", value)
    with pytest.raises(TensorError, match=r"experts\.\d\.up_proj\.weight in .* holds NaN or Inf"):
        run_quantize(source, tmp_path / "out", Recipe())


def test_other_groups_are_quantized_again(int4_source: Path, tmp_path: Path) -> None:
    report = run_quantize(int4_source, tmp_path / "out", Recipe(method="rtn", group_size=64))
    assert report["recipe"]["method"] == "rtn"
    assert report["summary"]["mean_error"] > 0
    result = verify(tmp_path / "out", int4_source)
    assert result.ok, result.problems


def test_a_config_that_the_formats_library_refuses_is_one_line(int4_source: Path, tmp_path: Path) -> None:
    """What only the library reads: the weights could not be decoded a second time."""
    source = tmp_path / "source"
    shutil.copytree(int4_source, source)
    run_quantize(source, tmp_path / "out", Recipe())
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["quantization_status"] = "../x"
    (source / "config.json").write_text(json.dumps(config))
    expected = r"config\.json: compressed-tensors does not accept quantization_config: quantization_status: "
    with pytest.raises(CheckpointError, match=expected):
        verify(tmp_path / "out", source)


def test_gptq_of_codes_costs_less_than_rounding_them(
    int4_source: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From groups of 32 to groups of 64; what that loses is measured against the source's own weights."""
    report = run_quantize(int4_source, tmp_path / "out", Recipe(group_size=64), calibration)
    assert "are quantized again, which adds to what they have lost" in capsys.readouterr().err
    assert (report["recipe"]["method"], report["recipe"]["group_size"]) == ("gptq", 64)
    assert sum(report["source"]["quantized_again"].values()) == 24
    said = "again     24 matrices were codes already"
    assert said in describe(read_report(tmp_path / "out"))
    summary = report["summary"]
    assert 0 < summary["mean_error"] < summary["mean_rtn_error"]
    result = verify(tmp_path / "out", int4_source)
    assert result.ok, result.problems
    assert 0 < result.worst_weight_errors[0].error < 0.1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(method="copy", group_size=64), "has groups of 32; leave group_size out"),
        (Recipe(method="copy", targets=("experts", "attention")), "and .*self_attn.* of the source has none"),
        (Recipe(group_size=32, targets=("experts", "attention")), "is INT4 in groups of 32 already"),
    ],
)
def test_what_copy_cannot_do_is_refused(
    recipe: Recipe, message: str, int4_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_quantize(int4_source, tmp_path / "out", recipe)


def test_a_plain_source_has_nothing_to_copy(small_source: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="method copy keeps INT4 codes"):
        run_quantize(small_source, tmp_path / "out", Recipe(method="copy"))


def test_the_config_alone_says_what_the_source_holds(int4_source: Path, tmp_path: Path) -> None:
    shutil.copy(int4_source / "config.json", tmp_path)
    sketched, real = SketchedCheckpoint(tmp_path), Checkpoint(int4_source)
    assert sketched.tensors.keys() == real.tensors.keys()
    assert {name: sketched.is_encoded(name) for name in real.tensors} == {
        name: real.is_encoded(name) for name in real.tensors
    }
