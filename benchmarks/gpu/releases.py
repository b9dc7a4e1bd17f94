"""A release in smaller groups with the same weights, and the BF16 checkpoint they decode to."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moe4.checkpoint.packed import dequantize, unpack

INDEX = "model.safetensors.index.json"


def regroup(release: Path, folder: Path, group_size: int) -> Path:
    """Write `release` in groups of `group_size`, a divisor of its own, each scale repeated; return `folder`.

    The weights are the same to the bit, so that one decoded twin serves for all group sizes.
    """
    config = json.loads((release / "config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    repeats, odd = divmod(weights["group_size"], group_size)
    if odd or not repeats:
        raise ValueError(f"groups of {weights['group_size']} do not split into groups of {group_size}")
    weights["group_size"] = group_size

    def change(name: str, tensor: Tensor, _: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        if name.endswith(".weight_scale"):
            tensor = tensor.repeat_interleave(repeats, dim=1)
        yield name, tensor

    return _rewrite(release, folder, config, change)


def decode(release: Path, folder: Path) -> Path:
    """Write the BF16 checkpoint that `release` decodes to; return `folder`."""
    config = json.loads((release / "config.json").read_text())
    config.pop("quantization_config")

    def change(name: str, tensor: Tensor, shard: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        if name.endswith(".weight_packed"):
            stem = name.removesuffix("_packed")
            yield stem, dequantize(unpack(tensor), shard[f"{stem}_scale"]).bfloat16()
        elif not name.endswith((".weight_scale", ".weight_shape")):
            yield name, tensor

    return _rewrite(release, folder, config, change)


def _rewrite(release: Path, folder: Path, config: dict[str, Any], change: Any) -> Path:
    """Copy a checkpoint, each tensor through `change`. Memory: one shard."""
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for path in sorted(release.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            shard = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
        new = {key: value for name, tensor in shard.items() for key, value in change(name, tensor, shard)}
        save_file({name: tensor.contiguous() for name, tensor in new.items()}, folder / path.name)
        weight_map |= dict.fromkeys(new, path.name)
    for path in release.iterdir():
        if (
            path.is_file()
            and path.suffix in (".json", ".jinja")
            and not path.name.startswith(("moe4-", "model."))
        ):
            shutil.copy(path, folder)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder
