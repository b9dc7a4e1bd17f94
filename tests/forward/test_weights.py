"""Opening a model to run it: every tensor there, in the shape that its config asks for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_fixtures import random_state, reference_config, write_checkpoint, write_rounded_release
from safetensors.torch import load_file

from moe4.checkpoint.source import Checkpoint
from moe4.errors import CheckpointError
from moe4.forward.weights import open_model

SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "vocab_size": 64, "intermediate_size": 128}
EXPERT = "model.layers.1.mlp.experts.2.up_proj"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source and the release made from it."""
    folder = tmp_path_factory.mktemp("weights")
    config = reference_config(**SMALL)
    source = write_checkpoint(folder / "source", config, random_state(config))
    return {"source": source, "release": write_rounded_release(source, folder / "release", group_size=64)}


def copy(folder: Path, to: Path, change: Callable[[State], object]) -> Path:
    (shard,) = folder.glob("*.safetensors")
    state = load_file(shard)
    change(state)
    config = json.loads((folder / "config.json").read_text())
    return write_checkpoint(to, config, state)


@pytest.mark.parametrize("kind", ["source", "release"])
def test_a_whole_model_opens(kind: str, folders: dict[str, Path]) -> None:
    weights, network = open_model(folders[kind], torch.float32)
    assert network.num_layers == 2
    assert weights.load(f"{EXPERT}.weight").shape == (128, 256)


BAD: dict[str, tuple[str, Callable[[State], object], str]] = {
    "a head is gone": ("release", lambda s: s.pop("lm_head.weight"), r"has no tensor lm_head\.weight"),
    "codes are gone": (
        "release",
        lambda s: s.pop(f"{EXPERT}.weight_packed"),
        rf"has no tensor {EXPERT}\.weight",
    ),
    "embeddings of another size": (
        "source",
        lambda s: s.update({"model.embed_tokens.weight": torch.zeros(32, 256)}),
        r"embed_tokens\.weight must have shape \[64, 256\] according to the config, found \[32, 256\]",
    ),
    "codes of another shape": (
        "release",
        lambda s: s.update({f"{EXPERT}.weight_packed": s[f"{EXPERT}.weight_packed"][:, :8].clone()}),
        rf"{EXPERT}\.weight_scale must have shape \[128, 1\] for {EXPERT}\.weight of shape \[128, 64\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_is_not_whole_is_refused(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    kind, change, message = BAD[name]
    with pytest.raises(CheckpointError, match=message):
        open_model(copy(folders[kind], tmp_path / "model", change), torch.float32)


SCALES: dict[str, Callable[[State], object]] = {
    "gone": lambda s: s.pop(f"{EXPERT}.weight_scale"),
    "of fewer rows": lambda s: s.update({f"{EXPERT}.weight_scale": torch.ones(8, 4)}),
    "of uneven groups": lambda s: s.update({f"{EXPERT}.weight_scale": torch.ones(128, 7)}),
    "of no groups": lambda s: s.update({f"{EXPERT}.weight_scale": torch.ones(128, 0)}),
    "of one dimension": lambda s: s.update({f"{EXPERT}.weight_scale": torch.ones(128)}),
    "in whole numbers": lambda s: s.update({f"{EXPERT}.weight_scale": torch.ones(128, 4, dtype=torch.int32)}),
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_that_do_not_fit_their_codes(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["release"], tmp_path / "model", SCALES[name])
    with pytest.raises(CheckpointError, match=rf"{EXPERT}\.weight_scale"):
        Checkpoint(folder)
