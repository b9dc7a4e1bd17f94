"""A tiny K2-shaped checkpoint in every form a source may have, calibration lines, and a release of it."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from model_fixtures import random_state, reference_config, write_checkpoint
from release_tools import Forks, run_quantize
from safetensors.torch import load_file, save_file

from moe4.recipe import Recipe

TINY = {
    "num_hidden_layers": 3,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "v_head_dim": 64,
    "qk_rope_head_dim": 32,
    "intermediate_size": 256,
}
SMALLER = {
    "hidden_size": 128,
    "moe_intermediate_size": 64,
    "intermediate_size": 64,
    "n_routed_experts": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
}
FP8_BLOCK = 128


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small matrices gain nothing from threads, and tests share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 checkpoint in one shard."""
    config = reference_config(**TINY)
    folder = write_checkpoint(
        tmp_path_factory.mktemp("source") / "bf16", config, random_state(config, seed=1)
    )
    (folder / "LICENSE").write_text("a licence\n")
    return folder


@pytest.fixture(scope="session")
def fp8_source(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in block-FP8, in shards named as Kimi's are, with a stray rotary buffer."""
    folder = tmp_path_factory.mktemp("source") / "fp8"
    shutil.copytree(source, folder)
    (shard,) = folder.glob("*.safetensors")
    state = load_file(shard)
    shard.unlink()
    pieces: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    weight_map = {}
    for number, (name, tensor) in enumerate(sorted(state.items())):
        stored = to_fp8(name, tensor) if "_proj" in name else {name: tensor}
        pieces[number % 3].update(stored)
    pieces[1]["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    for number, piece in enumerate(pieces, start=1):
        save_file(piece, folder / f"model-{number}-of-3.safetensors", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(piece, f"model-{number}-of-3.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def to_fp8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Store a weight as FP8 with one scale a block, as the checkpoints of DeepSeek and Kimi do."""
    rows, columns = weight.shape
    quantized = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (
                slice(i * FP8_BLOCK, (i + 1) * FP8_BLOCK),
                slice(j * FP8_BLOCK, (j + 1) * FP8_BLOCK),
            )
            scales[i, j] = weight[block].float().abs().max() / 448
            quantized[block] = (weight[block].float() / scales[i, j]).to(torch.float8_e4m3fn)
    return {name: quantized, f"{name}_scale_inv": scales}


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats and text of uneven length, some 2,000 tokens."""
    generator = random.Random(0)
    words = [
        "Tom",
        "has",
        "seven",
        "apples",
        "and",
        "buys",
        "12",
        "more",
        "how",
        "many",
        "are",
        "left",
        "total",
    ]
    path = tmp_path_factory.mktemp("calibration") / "calibration.jsonl"
    with path.open("w") as file:
        for number in range(24):
            text = " ".join(generator.choice(words) for _ in range(generator.randint(10, 90)))
            chat = {"messages": [{"role": "user", "content": text}]}
            file.write(json.dumps({"text": text} if number % 2 else chat) + "\n")
    return path


@pytest.fixture(scope="session")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 checkpoint that quantizes in a fraction of a second, in groups of 32."""
    config = reference_config(**{**TINY, **SMALLER})
    folder = tmp_path_factory.mktemp("source") / "small"
    return write_checkpoint(folder, config, random_state(config, seed=1))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs in processes that can be killed."""
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def release(source: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release made with the default recipe."""
    out = tmp_path_factory.mktemp("release") / "out"
    run_quantize(source, out, Recipe(), calibration)
    return out
