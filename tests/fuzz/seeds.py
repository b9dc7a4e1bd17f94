"""Sound inputs of every kind, which the cases damage: checkpoints, releases, results, manifests, requests."""

import json
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
from deploy.deploy_cases import write_kimi_config
from fuzz import quantized_sources
from fuzz.sandbox import call_main
from model_fixtures import REFERENCE_MODEL, REPOSITORY, random_state, reference_config, write_checkpoint
from publish.measured import comparison, evaluation, toolcheck

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
FUSED = ("qwen3_moe", "deepseek_v3")  # families that are there once more as transformers' modules hold them
SOURCES = ("k2", *quantized_sources.NAMES, *FAMILIES, *(f"{family}-fused" for family in FUSED))
COPIED = "ct-int4"  # the source whose codes a release takes over
FORMS = {
    "podman": "sh",
    "quadlet": "container",
    "compose": "yaml",
    "kserve": "yaml",
    "llmd": "yaml",
    "kubernetes": "yaml",
    "leaderworkerset": "yaml",
}
ON_A_CLUSTER = ("kserve", "llmd", "kubernetes", "leaderworkerset")
SEVERAL_MACHINES = ["--trust-remote-code", "--gpu", "h100", "--gpus", "16"]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_seeds(folder: Path) -> None:
    """Fill the folder. What moe4 itself writes is made by running it."""
    torch.set_num_threads(1)
    folder.mkdir()
    config = reference_config(**K2)
    write_checkpoint(folder / "k2", config, random_state(config, seed=1))
    for name in quantized_sources.NAMES:
        quantized_sources.write_quantized(folder / "k2", folder / name, name)
    for family in FAMILIES:
        _write_family(folder / family, family)
    for family in FUSED:
        _write_family(folder / f"{family}-fused", family, fused=True)
    _write_data(folder)
    calibrated = ["--calibration", str(folder / "data" / "calibration.jsonl"), "--num-sequences", "2"]
    release = str(folder / "release")
    _moe4("quantize", str(folder / "k2"), release, *calibrated)
    _moe4("quantize", str(folder / COPIED), str(folder / "copied"))
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


def _write_family(folder: Path, family: str, *, fused: bool = False) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SIZES, "hidden_size": 64, "intermediate_size": 64, **FAMILIES[family]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, save_original_format=not fused)
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
    shutil.copytree(REPOSITORY / "recipes", data / "recipes")


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
    kimi = write_kimi_config(folder / "kimi")
    for form, suffix in FORMS.items():
        where = ["--model", "pvc://models/k2"] if form in ON_A_CLUSTER else []
        if form != "leaderworkerset":
            _moe4("deploy", form, str(REFERENCE_MODEL), "-o", str(manifests / f"{form}.{suffix}"), *where)
        if form in ("kserve", "leaderworkerset"):
            out = str(manifests / f"{form}-several.{suffix}")
            _moe4("deploy", form, str(kimi), "-o", out, *where, *SEVERAL_MACHINES)
    _moe4("deploy", "dashboard", str(REFERENCE_MODEL), "-o", str(manifests / "dashboard"))
    for sample in (REPOSITORY / "tests" / "deploy" / "lint" / "samples").iterdir():
        shutil.copy(sample, manifests)
    text = (manifests / "card-curl.sh").read_text()
    (manifests / "guide.md").write_text(f"# Serve\n\n```bash\n{text}\n```\n")
