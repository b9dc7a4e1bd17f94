"""Sound inputs of every kind, which the cases damage: checkpoints, releases, results, manifests, requests."""

import json
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz.sandbox import call_main
from model_fixtures import REFERENCE_MODEL, REPOSITORY, random_state, reference_config, write_checkpoint
from publish.measured import comparison, evaluation, toolcheck
from safetensors.torch import load_file, save_file

sys.path.append(str(REPOSITORY / "tests" / "quantize" / "run"))
from test_families import FAMILIES, SIZES

K2 = {
    "num_hidden_layers": 3,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 64,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
}
FP8_BLOCK = 32
SOURCES = ("k2", "fp8", *FAMILIES)
FORMS = {
    "podman": "sh",
    "quadlet": "container",
    "compose": "yaml",
    "kserve": "yaml",
    "llmd": "yaml",
    "kubernetes": "yaml",
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_seeds(folder: Path) -> None:
    """Fill the folder. What moe4 itself writes is made by running it."""
    torch.set_num_threads(1)
    folder.mkdir()
    config = reference_config(**K2)
    write_checkpoint(folder / "k2", config, random_state(config, seed=1))
    _write_fp8(folder / "k2", folder / "fp8")
    for family in FAMILIES:
        _write_family(folder / family, family)
    _write_data(folder)
    calibrated = ["--calibration", str(folder / "data" / "calibration.jsonl"), "--num-sequences", "2"]
    release = str(folder / "release")
    _moe4("quantize", str(folder / "k2"), release, *calibrated)
    _write_unfinished(folder, calibrated)
    _write_manifests(folder)
    proof = folder / "release" / "proof"
    proof.mkdir()
    for name, content in (
        ("evaluation", evaluation()),
        ("comparison", comparison()),
        ("toolcheck", toolcheck()),
    ):
        (proof / f"{name}.json").write_text(json.dumps(content))


def _moe4(*arguments: str) -> None:
    code = call_main(arguments)
    assert code == 0, (arguments, code)


def _write_fp8(source: Path, folder: Path) -> None:
    """Write the checkpoint in block-FP8 and three shards."""
    shutil.copytree(source, folder)
    (shard,) = folder.glob("*.safetensors")
    state = load_file(shard)
    shard.unlink()
    pieces: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for number, (name, tensor) in enumerate(sorted(state.items())):
        piece = pieces[number % 3]
        if "_proj" not in name or tensor.dim() != 2:
            piece[name] = tensor
            continue
        rows, columns = (-(-size // FP8_BLOCK) for size in tensor.shape)
        piece[name] = tensor.to(torch.float8_e4m3fn)
        piece[f"{name}_scale_inv"] = torch.ones(rows, columns)
    weight_map = {}
    for number, piece in enumerate(pieces, start=1):
        save_file(piece, folder / f"model-{number}-of-3.safetensors", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(piece, f"model-{number}-of-3.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}
    (folder / "config.json").write_text(json.dumps(config))


def _write_family(folder: Path, family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SIZES, "hidden_size": 64, "intermediate_size": 64, **FAMILIES[family]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(REFERENCE_MODEL / name, folder)


def _write_data(folder: Path) -> None:
    """Write calibration, questions, chats, tool requests and a recipe, of a few lines each."""
    data = folder / "data"
    data.mkdir()
    rng = Random(0)
    words = ["Tom", "has", "seven", "apples", "and", "buys", "12", "more", "how", "many"]
    lines: list[dict[str, Any]] = []
    for number in range(6):
        text = " ".join(rng.choice(words) for _ in range(rng.randint(5, 40)))
        lines.append({"text": text} if number % 2 else {"messages": [{"role": "user", "content": text}]})
    (data / "calibration.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("heldout-chats", "heldout-problems", "heldout-tools"):
        source = REPOSITORY / "reference" / "data" / f"{name}.jsonl"
        (data / source.name).write_text("".join(source.read_text().splitlines(keepends=True)[:4]))
    shutil.copy(REPOSITORY / "recipes" / "w4a16-gptq.toml", data / "recipe.toml")


def _write_unfinished(folder: Path, calibrated: list[str]) -> None:
    """Write what a run leaves that was interrupted after two shards."""
    from moe4.quantize.reporting.progress import ProgressReporter

    real, count = ProgressReporter.layer_done, 0

    def layer_done(reporter: ProgressReporter, layer: int) -> None:
        nonlocal count
        real(reporter, layer)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    ProgressReporter.layer_done = layer_done  # type: ignore[method-assign]
    try:
        code = call_main(["quantize", str(folder / "k2"), str(folder / "unfinished"), *calibrated])
    finally:
        ProgressReporter.layer_done = real  # type: ignore[method-assign]
    assert code == 130, code
    assert (folder / "unfinished" / ".moe4" / "journal.jsonl").exists()


def _write_manifests(folder: Path) -> None:
    manifests = folder / "manifests"
    manifests.mkdir()
    for form, suffix in FORMS.items():
        where = ["--model", "pvc://models/k2"] if form in ("kserve", "llmd", "kubernetes") else []
        _moe4("deploy", form, str(REFERENCE_MODEL), "-o", str(manifests / f"{form}.{suffix}"), *where)
    _moe4("deploy", "dashboard", str(REFERENCE_MODEL), "-o", str(manifests / "dashboard"))
    for sample in (REPOSITORY / "tests" / "deploy" / "samples").iterdir():
        shutil.copy(sample, manifests)
    text = (manifests / "card-curl.sh").read_text()
    (manifests / "guide.md").write_text(f"# Serve\n\n```bash\n{text}\n```\n")
