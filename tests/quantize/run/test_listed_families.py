"""Every family that transformers' own code describes: planned, quantized, verified, and equal to its twin.

The twin is the release's weights, decoded by compressed-tensors, as a whole model in transformers. The inputs
of every layer, which the run leaves, are held to the twin's, and the expected answers to its logits.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import load_model, write_source, write_twin
from release_tools import decompress, keep_boundaries, load_folder, run_quantize, tokenize
from safetensors.torch import load_file, save_file

import moe4
from moe4.config import families
from moe4.probe.sequences import choose_sequences
from moe4.quantize.layer import running_probe
from moe4.recipe import ALL_TARGETS, Calibration, Recipe
from moe4.verify.checks import verify

# A text model alone has the layers of its model with towers.
LISTED = sorted(families.BY_TRANSFORMERS - {"qwen3_5_moe_text"})
# Beside each in its plainest form: what real checkpoints of a family differ in.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in LISTED},
    "nemotron_h-latent": ("nemotron_h", {"moe_latent_size": 32}),
}
# Float32 sums in two orders through three layers: some 1e-6. A wrong norm, mask or route is 0.1 and more.
DISTANCE = 1e-5
LOGPROBS = 1e-3
CHECKED_ANSWERS = 3


@pytest.fixture(scope="module")
def short_calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts of uneven length, longer than the small models' windows."""
    path = tmp_path_factory.mktemp("short") / "calibration.jsonl"
    texts = [
        "Tom has seven apples and buys 12 more. How many are left in total? " * count for count in (2, 1)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def choose_shortest(*arguments: Any) -> tuple[list[Any], list[str]]:
    """Return the shortest of the expected answers' sequences: whole models run them once more."""
    chosen, remarks = choose_sequences(*arguments)
    return sorted(chosen, key=lambda sequence: len(sequence.tokens))[:CHECKED_ANSWERS], remarks


@contextmanager
def layer_inputs(model: Any) -> Iterator[list[torch.Tensor]]:
    """Note what each decoder layer of a model gets, [tokens, values of a token]."""
    seen: list[torch.Tensor] = []

    def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        seen.append(hidden[0].flatten(1))

    decoder = model.get_decoder()
    layers = (decoder.model if hasattr(decoder, "lm_head") else decoder).layers
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    yield seen
    for handle in handles:
        handle.remove()


def hold_to_twin(twin: Any, sequences: list[list[int]], kept: dict[str, bytes], release: Path) -> None:
    """Hold the hidden states that a run left, and the release's expected answers, to the whole model's."""
    found: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for tokens in sequences:
            with layer_inputs(twin) as seen:
                twin(torch.tensor([tokens]))
            found.append(seen)
    for layer, parts in enumerate(zip(*found, strict=True)):
        expected = torch.cat(parts)
        data = bytearray(kept[f"hidden-{layer:05d}.bin"])
        hidden = torch.frombuffer(data, dtype=torch.float32).view(expected.shape)
        assert float(((hidden - expected).norm(dim=1) / expected.norm(dim=1)).max()) < DISTANCE, layer
    answers = json.loads((release / "moe4-probe.json").read_text())["sequences"]
    assert len(answers) == CHECKED_ANSWERS
    for answer in answers:
        with torch.inference_mode():
            logits = twin(torch.tensor([answer["tokens"]])).logits[0, -1]
        expected = torch.log_softmax(logits.float(), dim=-1)
        assert float(expected.std()) > 0.1  # sharp enough for a wrong weight to be seen
        told = answer["released"]
        assert (expected[told["ids"]] - torch.tensor(told["logprobs"])).abs().max() < LOGPROBS


RECIPE = Recipe(
    group_size=32,
    targets=ALL_TARGETS,
    calibration=Calibration(num_sequences=2, compute_dtype="float32"),
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_release_is_its_decoded_twin(
    variant: str, short_calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, more = VARIANTS[variant]
    source, out = write_source(tmp_path / "source", family, **more), tmp_path / "out"
    recipe = RECIPE
    plan = moe4.plan(source, recipe=recipe, calibration=short_calibration, time_it=False)
    assert plan.problems == []
    kept = keep_boundaries(monkeypatch)
    monkeypatch.setattr(running_probe, "choose_sequences", choose_shortest)
    report = run_quantize(source, out, recipe, short_calibration)
    assert report["summary"]["mean_error"] < 0.7 * report["summary"]["mean_rtn_error"]
    assert verify(out, source).problems == []
    plain = write_twin(decompress(out, exact=True), source, out, tmp_path / "plain")
    hold_to_twin(load_model(plain, torch.float32), tokenize(source, short_calibration, 2), kept, out)


PUBLISHED = {
    "model.embed_tokens.weight": "embed.weight",
    **{f"model.hc_head.hc_{leaf}": f"hc_head_{leaf}" for leaf in ("fn", "base", "scale")},
}


def publish_deepseek_v4(source: Path, folder: Path) -> dict[str, str]:
    """Write a source of transformers' under the names that DeepSeek-V4 is published with; return these."""
    shutil.copytree(source, folder)
    state = load_file(source / "model.safetensors")
    names = {
        name: re.sub(r"\.attn\.norm\.", ".attn.kv_norm.", PUBLISHED.get(name, name.removeprefix("model.")))
        for name in state
    }
    renamed = {names[name]: tensor for name, tensor in state.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return names


def test_deepseek_v4_keeps_the_names_it_is_published_with(
    short_calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers loads them and saves others; the release has the source's, and the same bytes in them."""
    monkeypatch.setattr(running_probe, "choose_sequences", choose_shortest)
    source = write_source(tmp_path / "source", "deepseek_v4")
    names = publish_deepseek_v4(source, tmp_path / "published")
    plan = moe4.plan(tmp_path / "published", recipe=RECIPE, calibration=short_calibration, time_it=False)
    assert plan.problems == []
    found = {}
    for folder in (source, tmp_path / "published"):
        run_quantize(folder, folder.with_suffix(".out"), RECIPE, short_calibration)
        assert verify(folder.with_suffix(".out"), folder).problems == []
        found[folder.name] = load_folder(folder.with_suffix(".out"))
    for name, tensor in found["source"].items():
        base, dot, leaf = name.partition(".weight_")
        published = names[f"{base}.weight"] + f"_{leaf}" if dot else names[name]
        assert torch.equal(found["published"][published].view(torch.uint8), tensor.view(torch.uint8))
