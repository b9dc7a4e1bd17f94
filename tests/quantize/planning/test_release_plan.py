"""What a release is planned to hold, from headers alone."""

import re
from pathlib import Path

import pytest
import torch
from family_models import write_source
from safetensors.torch import load_file, save_file

from moe4.checkpoint.source import Checkpoint
from moe4.model.architecture import Network
from moe4.model.fused import take_experts_apart
from moe4.quantize.planning.release_plan import make_plan
from moe4.quantize.planning.resolve import resolve_for_source
from moe4.recipe import ALL_TARGETS, Recipe, Target


def is_ignored(module: str, ignore: list[str]) -> bool:
    """Say what vLLM does: a name, or a pattern that is matched from the start."""
    return any(
        re.match(entry.removeprefix("re:"), module) if entry.startswith("re:") else entry == module
        for entry in ignore
    )


@pytest.mark.parametrize("targets", [("experts",), ALL_TARGETS])
def test_just_what_is_not_quantized_is_ignored(targets: tuple[Target, ...], small_source: Path) -> None:
    checkpoint = Checkpoint(small_source)
    network = Network(checkpoint.config, torch.bfloat16)
    recipe = resolve_for_source(Recipe(method="rtn", targets=targets, group_size=32), checkpoint, network)
    plan = make_plan(checkpoint, network, recipe)
    specs = [spec for shard in plan.shards for spec in shard.specs]
    quantized = {spec.name.removesuffix(".weight_packed") for spec in specs if spec.dtype == "I32"}
    assert quantized
    assert not [module for module in quantized if is_ignored(module, plan.ignore)]
    linear = {
        spec.name.removesuffix(".weight")
        for spec in specs
        if spec.name.endswith(".weight") and len(spec.shape) == 2 and "embed_tokens" not in spec.name
    }
    assert any(module.endswith("mlp.gate") for module in linear)
    assert not [module for module in linear if not is_ignored(module, plan.ignore)]


def test_layers_that_predict_further_tokens_are_ignored(tmp_path: Path) -> None:
    """vLLM builds them by the same config, as `mtp.layers.0` and so on; they are copied as they are."""
    source = write_source(tmp_path / "source", "qwen3_next")
    (shard,) = source.glob("*.safetensors")
    extra = ("mtp.fc.weight", "mtp.layers.0.mlp.experts.0.up_proj.weight", "mtp.norm.weight")
    tensors = load_file(shard) | {name: torch.ones(64, 64, dtype=torch.bfloat16) for name in extra}
    save_file(tensors, shard, metadata={"format": "pt"})
    checkpoint = Checkpoint(source)
    network = Network(checkpoint.config, torch.bfloat16)
    recipe = resolve_for_source(Recipe(method="rtn", group_size=32), checkpoint, network)
    plan = make_plan(checkpoint, network, recipe)
    assert set(extra) <= set(plan.shards[-1].copied)
    assert all(is_ignored(name.removesuffix(".weight"), plan.ignore) for name in extra)
    experts = [shape.weight_name(0, "up").removesuffix(".weight") for shape in network.experts if shape]
    assert experts
    assert not [module for module in experts if is_ignored(module, plan.ignore)]


def test_a_projector_that_is_one_linear_is_ignored(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_source(tmp_path / "source", "step3p7"))
    network = Network(checkpoint.config, torch.bfloat16)
    take_experts_apart(checkpoint, network)
    recipe = resolve_for_source(Recipe(method="rtn", group_size=32), checkpoint, network)
    plan = make_plan(checkpoint, network, recipe)
    projectors = [name for name in plan.shards[-1].copied if "projector" in name]
    assert projectors
    assert all(is_ignored(name.removesuffix(".weight"), plan.ignore) for name in projectors)
