"""What a release is planned to hold, from headers alone."""

import re
from pathlib import Path

import pytest
import torch

from moe4.checkpoint.source import Checkpoint
from moe4.model.architecture import Network
from moe4.quantize.planning.release_plan import make_plan, resolve_for_source
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
