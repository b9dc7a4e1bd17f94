"""What a release's config.json says of its quantization, in the words of compressed-tensors."""

import re
from collections.abc import Mapping, Sequence

from moe4.model.outline import Outline
from moe4.recipe import Recipe
from moe4.strict_json import JsonObject


def quantization_config(recipe: Recipe, ignore: list[str]) -> JsonObject:
    """Return the `quantization_config` that compressed-tensors and vLLM read; ignore: what stays as it is."""
    ordered = recipe.method == "gptq" and recipe.gptq.activation_order
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": recipe.group_size,
        "dynamic": False,
        "actorder": "weight" if ordered else None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }


def ignore_list(
    network: Outline, recipe: Recipe, rest: Sequence[str], copied: Mapping[int, Sequence[str]]
) -> list[str]:
    """Return what is not quantized, for vLLM: names, and `re:` patterns matched from the start.

    rest: tensors outside the layers; copied: those that each layer keeps as they are.
    """
    ignore = [network.names.head.removesuffix(".weight")]
    ignore.append("re:.*self_attn.*" if "attention" not in recipe.targets else r"re:.*self_attn\.kv_b_proj.*")
    if "shared_experts" not in recipe.targets:
        ignore.append("re:.*shared_experts?\\..*")
    ignore.append("re:.*shared_expert_gate$")
    if "dense_mlps" not in recipe.targets:
        ignore.append(r"re:.*mlp\.(gate|up|gate_up|down)_proj.*")
    routers = {experts.prefix.split(".")[-2] for experts in network.experts if experts}
    ignore.extend(rf"re:.*{module}\.gate$" for module in sorted(routers))
    extra = {layer for layer in map(network.layer_of, rest) if layer is not None}
    ignore.extend(rf"re:.*layers\.{layer}\..*" for layer in sorted(extra))
    if network.names.text_prefix:  # towers and projectors beside the text model
        others = {name.split(".")[0] for name in rest if not name.startswith(network.names.text_prefix)}
        ignore.extend(rf"re:{module}\..*" for module in sorted(others))
    towers = {name.removeprefix("model.").split(".")[0] for name in network.names.others}
    ignore.extend(rf"re:.*{module}\..*" for module in sorted(towers))
    ignore.extend(_not_ignored(network, copied, ignore))
    return ignore


def _not_ignored(network: Outline, copied: Mapping[int, Sequence[str]], ignore: list[str]) -> list[str]:
    """Return patterns for what a layer keeps as it is and no other pattern names."""
    patterns = [re.compile(entry.removeprefix("re:")) for entry in ignore if entry.startswith("re:")]
    found = set()
    for layer, names in copied.items():
        prefix, shapes = network.layer_prefix(layer), network.layer_tensors(layer)
        for name in names:
            module, _, leaf = name.rpartition(".")
            is_linear = leaf == "weight" and len(shapes.get(name, ())) == 2
            if is_linear and not any(pattern.match(module) for pattern in patterns):
                found.add(module.removeprefix(prefix))
    return [rf"re:.*layers\.\d+\.{re.escape(module)}$" for module in sorted(found)]
