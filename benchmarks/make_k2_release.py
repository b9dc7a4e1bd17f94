"""Write a random W4A16 release with Kimi-K2's real widths and few layers and experts, without quantizing one.

    python benchmarks/make_k2_release.py FOLDER [--layers 5] [--experts 96] [--device cuda]

The first layer is dense, as K2's. The defaults make 8.7 GB of routed experts and 2.3 GB of BF16. Only the
vocabulary and the tokenizer are k2-tiny's. What it answers means nothing; what it reads and multiplies, and
where that lies in the files, is as in a release of the real model.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.release_folder import dump_json
from moe4.checkpoint.shard import DTYPES, ShardWriter, TensorSpec
from moe4.config import parse_config
from moe4.model.inventory import Tensors, list_tensors

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "k2-tiny"
GROUP = 128
K2 = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1536,
    "moe_intermediate_size": 2048,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 1,
}
ORDER = (".weight_packed", ".weight_shape", "_bias", ".weight_scale", "")  # as releases lie on disk


def release_config(**changes: int) -> dict[str, Any]:
    """Return k2-tiny's config with K2's widths, `changes`, and a release's quantization_config."""
    config: dict[str, Any] = json.loads((REFERENCE / "config.json").read_text())
    config.update(K2, **changes)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    group = {"targets": ["Linear"], "weights": {**weights, "dynamic": False}, "input_activations": None}
    ignore = [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "ignore": [*ignore, r"re:.*mlp\.gate$"],
    }
    return config


def stored_as(tensors: Tensors) -> list[TensorSpec]:
    """Return what a tensor, or the experts' tensors, are on disk."""
    if not tensors.is_routed_expert:
        dtype = "F32" if tensors.float32 else "BF16"
        return [TensorSpec(name=tensors.name, dtype=dtype, shape=tensors.shape)]
    rows, columns = tensors.shape
    specs = []
    for expert in range(tensors.copies):
        stem = tensors.name.format(expert=expert)
        specs += [
            TensorSpec(name=f"{stem}_packed", dtype="I32", shape=(rows, columns // 8)),
            TensorSpec(name=f"{stem}_scale", dtype="BF16", shape=(rows, columns // GROUP)),
            TensorSpec(name=f"{stem}_shape", dtype="I64", shape=(2,)),
        ]
    return specs


def place(spec: TensorSpec) -> tuple[int, int]:
    """Return what a release's tensors are sorted by: their kind, then their expert."""
    kind = next(number for number, suffix in enumerate(ORDER) if spec.name.endswith(suffix))
    _, _, expert = spec.name.partition(".experts.")
    return kind, int(expert.partition(".")[0]) if expert else 0


def random_values(spec: TensorSpec, generator: torch.Generator, width: int, hidden: int) -> Tensor:
    """Return values that keep activations near 1, drawn on the generator's device, in the host's memory."""
    device = generator.device
    if spec.dtype == "I32":
        words = torch.empty(spec.shape, dtype=torch.int32, device=device)
        return words.random_(-(2**31), 2**31 - 1, generator=generator).cpu()
    if spec.dtype == "I64":
        return torch.tensor([hidden, width] if "down_proj" in spec.name else [width, hidden])
    if len(spec.shape) == 1:
        return torch.full(spec.shape, 0.0 if "bias" in spec.name else 1.0, dtype=DTYPES[spec.dtype])
    columns = spec.shape[1] * (GROUP if spec.name.endswith("_scale") else 1)
    gain = 1.0 if "embed" in spec.name else columns**-0.5 / (4.6 if spec.name.endswith("_scale") else 1.0)
    values = torch.empty(spec.shape, device=device).normal_(std=gain, generator=generator)
    return values.to(torch.bfloat16).cpu()


def make(folder: Path, seed: int = 0, device: str = "cpu", **changes: int) -> None:
    """Write the release, a shard a layer, from values drawn on `device`. Memory: one tensor in float32."""
    config = release_config(**changes)
    folder.mkdir(parents=True)
    for file in REFERENCE.iterdir():
        if file.suffix in (".json", ".jinja") and "index" not in file.name and file.name != "config.json":
            shutil.copy(file, folder)
    generator = torch.Generator(device).manual_seed(seed)
    shards: dict[str, list[TensorSpec]] = {}
    for tensors in list_tensors(parse_config(config).family):
        parts = tensors.name.split(".")
        number = int(parts[2]) + 1 if parts[1] == "layers" else config["num_hidden_layers"] + 1
        name = f"model-{number:05}-of-{config['num_hidden_layers'] + 1:05}.safetensors"
        shards.setdefault(name, []).extend(stored_as(tensors))
    for name, specs in shards.items():
        specs.sort(key=place)
        writer = ShardWriter(folder / name, specs)
        for spec in specs:
            values = random_values(spec, generator, config["moe_intermediate_size"], config["hidden_size"])
            writer.write(spec.name, values)
        writer.finish()
    weight_map = {spec.name: name for name, specs in shards.items() for spec in specs}
    (folder / "model.safetensors.index.json").write_bytes(dump_json({"weight_map": weight_map}))
    (folder / "config.json").write_bytes(dump_json(config))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    names = {
        "layers": ("num_hidden_layers", 5),
        "experts": ("n_routed_experts", 96),
        "hidden": ("hidden_size", 7168),
        "width": ("moe_intermediate_size", 2048),
        "top_k": ("num_experts_per_tok", 8),
    }
    for name, (_, value) in names.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--device", default="cpu", help="where values are drawn; cuda is ten times as fast")
    arguments = vars(parser.parse_args())
    folder, device = arguments.pop("folder"), arguments.pop("device")
    make(folder, device=device, **{names[name][0]: value for name, value in arguments.items()})


if __name__ == "__main__":
    main()
