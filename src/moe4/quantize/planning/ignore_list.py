"""The modules that the release's config names as not quantized, for compressed-tensors and vLLM."""

import re
from collections.abc import Collection, Mapping, Sequence

from moe4.model.outline import Outline
from moe4.recipe import Target


def ignore_list(
    network: Outline,
    targets: Collection[Target],
    rest: Sequence[str],
    copied: Mapping[int, Sequence[str]],
) -> list[str]:
    """Return what is not quantized, for vLLM: names, and `re:` patterns matched from the start.

    rest: tensors outside the layers; copied: those that each layer keeps as they are.
    """
    ignore = [network.names.head.removesuffix(".weight")]
    ignore.append("re:.*self_attn.*" if "attention" not in targets else r"re:.*self_attn\.kv_b_proj.*")
    if "shared_experts" not in targets:
        ignore.append("re:.*shared_experts?\\..*")
    ignore.append("re:.*shared_expert_gate$")
    if "dense_mlps" not in targets:
        ignore.append(r"re:.*mlp\.(gate|up|gate_up|down)_proj.*")
    routers = {experts.prefix.split(".")[-2] for experts in network.experts if experts}
    ignore.extend(rf"re:.*{module}\.gate$" for module in sorted(routers))
    extra = {layer for layer in map(network.layer_of, rest) if layer is not None}
    ignore.extend(rf"re:.*layers\.{layer}\..*" for layer in sorted(extra))
    if network.names.text_prefix:  # towers and projectors beside the text model
        others = {name.split(".")[0] for name in rest if not name.startswith(network.names.text_prefix)}
        ignore.extend(rf"re:{module}\..*" for module in sorted(others))
    ignore.extend(rf"re:.*{re.escape(module)}(\..*)?$" for module in _modules_beside(network, rest))
    ignore.extend(_not_ignored(network, copied, ignore))
    return ignore


def _modules_beside(network: Outline, rest: Sequence[str]) -> list[str]:
    """Return the modules beside the text model's own, such as a vision tower or `mtp`, by transformers."""
    names, around = network.names, network.names.layers.rstrip(".").rpartition(".")[0] + "."
    own = {network.embedding_name, names.head, *names.ending}
    extra = [] if names.text_prefix else [name for name in rest if network.layer_of(name) is None]
    beside = [name.removeprefix(around).removeprefix("model.") for name in {*names.others, *extra} - own]
    return sorted({name.split(".")[0] for name in beside if "." in name} - set(around.split(".")))


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
