"""Write a random checkpoint with Kimi-K2's routed experts, in block-FP8, and little else.

    python benchmarks/make_k2_shaped.py FOLDER [--layers 1] [--experts 4] [--width 2048] [--bf16] [--full]
    [--device cuda]

Names, shapes and dtypes of the experts are the real model's; attention, dense MLP and vocabulary are small.
With --full only the vocabulary is. The tokenizer is k2-tiny's. An expert of the real shape takes 44 MB.
`FOLDER/calibration.jsonl` has text for GPTQ.
"""

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.shard import DTYPE_NAMES, ShardWriter, TensorSpec
from moe4.config import parse_config
from moe4.model.architecture import Network
from moe4.model.names import PARTS

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "k2-tiny"
BLOCK = 128
SMALL = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
# Kimi-K2's own.
FULL = {
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
}


def shaped_config(full: bool = False, **sizes: int) -> dict[str, Any]:
    """Return the config of a BF16 checkpoint; `sizes` are the command line's."""
    config: dict[str, Any] = json.loads((REFERENCE / "config.json").read_text())
    config.update(
        {**SMALL, **(FULL if full else {})},
        num_hidden_layers=sizes["dense"] + sizes["layers"],
        first_k_dense_replace=sizes["dense"],
        n_routed_experts=sizes["experts"],
        num_experts_per_tok=sizes["top_k"],
        hidden_size=sizes["hidden"],
        moe_intermediate_size=sizes["width"],
    )
    return config


def make(
    folder: Path, *, bf16: bool, seed: int, full: bool = False, device: str = "cpu", **sizes: int
) -> None:
    """Write the checkpoint, a shard a layer, from values drawn on `device`.

    Memory: one tensor. With `bf16` nothing is FP8.
    """
    config = shaped_config(full, **sizes)
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    if not bf16:
        quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
        config["quantization_config"] = quantization
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for file in REFERENCE.iterdir():
        if file.suffix in (".json", ".jinja") and "index" not in file.name and file.name != "config.json":
            shutil.copy(file, folder)
    network, weight_map = Network(parse_config(config), torch.bfloat16), {}
    generator = torch.Generator(device).manual_seed(seed)
    for number in range(layers + 1):
        if number < layers:
            shapes = dict(network.layer_tensors(number))
            found = network.experts[number]
            for expert in range(found.num_experts if found else 0):
                for part in PARTS:
                    assert found is not None
                    shapes[found.weight_name(expert, part)] = found.weight_shape(part)
        else:
            vocabulary = (config["vocab_size"], hidden)
            shapes = {"model.embed_tokens.weight": vocabulary, "lm_head.weight": vocabulary}
            shapes["model.norm.weight"] = (hidden,)
        name = f"model-{number + 1}-of-{layers + 1}.safetensors"
        specs = [
            TensorSpec(name=stored, dtype=DTYPE_NAMES[dtype], shape=shape)
            for key, size in shapes.items()
            for stored, dtype, shape in _stored(key, size, bf16)
        ]
        writer = ShardWriter(folder / name, specs)
        for key, size in shapes.items():
            for stored, tensor in _values(key, size, bf16, generator):
                writer.write(stored, tensor)
        writer.finish()
        weight_map.update(dict.fromkeys((spec.name for spec in specs), name))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    words = ["the", "model", "reads", "some", "words", "and", "answers", "with", "numbers", "of", "towns"]
    picker = random.Random(seed)
    with (folder / "calibration.jsonl").open("w") as file:
        for _ in range(512):
            file.write(json.dumps({"text": " ".join(picker.choices(words, k=240))}) + "\n")


def _is_fp8(name: str) -> bool:
    return name.endswith("_proj.weight") or "kv_a_proj" in name


def _stored(
    name: str, shape: tuple[int, ...], bf16: bool
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    if _is_fp8(name) and not bf16:
        yield name, torch.float8_e4m3fn, shape
        yield f"{name}_scale_inv", torch.float32, tuple(-(-size // BLOCK) for size in shape)
    else:
        yield name, torch.float32 if "correction_bias" in name else torch.bfloat16, shape


def _values(
    name: str, shape: tuple[int, ...], bf16: bool, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    for stored, dtype, size in _stored(name, shape, bf16):
        values = torch.empty(size, device=generator.device)
        if stored.endswith("_scale_inv"):
            values.uniform_(0.5, 2.0, generator=generator).mul_(1 / (64 * shape[1] ** 0.5))
        elif len(size) == 1:
            values.fill_(0.0 if "bias" in stored else 1.0)
        else:
            values.normal_(std=64.0 if dtype is torch.float8_e4m3fn else 1.0, generator=generator)
            if dtype is not torch.float8_e4m3fn and "embed" not in stored:
                values.mul_(1 / size[1] ** 0.5)
        yield stored, values.to(dtype).cpu()


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    settings: dict[str, Any] = {
        "layers": 1,
        "dense": 0,
        "experts": 4,
        "hidden": 7168,
        "width": 2048,
        "top_k": 2,
        "seed": 0,
    }
    for name, value in settings.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--bf16", action="store_true", help="no FP8, for tools that cannot read it")
    parser.add_argument("--full", action="store_true", help="the real attention and dense MLP, too")
    parser.add_argument("--device", default="cpu", help="where values are drawn; cuda is ten times as fast")
    arguments = vars(parser.parse_args())
    make(arguments.pop("folder"), **arguments)


if __name__ == "__main__":
    main()
