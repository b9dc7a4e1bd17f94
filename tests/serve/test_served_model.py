"""What `moe4 serve` reads from a model's folder, and the faults it names."""

import json
import shutil
from pathlib import Path

import pytest
from model_fixtures import random_state, reference_config, write_checkpoint, write_rounded_release

from moe4.errors import CheckpointError, MissingFileError, TruncatedShardError
from moe4.serve.model import read_served_model

SMALL = {
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "vocab_size": 64,
    "intermediate_size": 128,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and the release made from it."""
    folder = tmp_path_factory.mktemp("written")
    config = reference_config(**SMALL)
    source = write_checkpoint(folder / "source", config, random_state(config))
    write_rounded_release(source, folder / "release", group_size=64)
    return folder


@pytest.fixture
def release(written: Path, tmp_path: Path) -> Path:
    """A copy of the release, to be damaged."""
    return shutil.copytree(written / "release", tmp_path / "release")


def test_release(release: Path, written: Path) -> None:
    model = read_served_model(release)
    assert (model.name, model.group_size, model.expert_width) == ("release", 64, 128)
    assert model.kv_bytes_per_token == 2 * 2 * (512 + 64)
    assert (model.num_heads, model.num_kv_heads) == (4, None)
    assert (model.dense_widths, model.shared_widths) == ((128,), (128,))
    assert model.uses_kimi_calls
    assert not model.needs_own_code
    assert read_served_model(written / "source").group_size is None


def test_dense_models_cache_keys_and_values(release: Path) -> None:
    sizes = {"num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 3}
    edit(release / "config.json", model_type="gpt_oss", kv_lora_rank=None, **sizes)
    model = read_served_model(release)
    assert model.kv_bytes_per_token == 2 * 3 * 2 * 2 * 32
    assert model.num_kv_heads == 2


def test_a_tokenizer_that_is_code(release: Path) -> None:
    (release / "tokenizer.json").unlink()
    edit(release / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    assert read_served_model(release).needs_own_code


def test_other_chat_forms(release: Path) -> None:
    (release / "chat_template.jinja").write_text("{{ messages }}")
    assert not read_served_model(release).uses_kimi_calls


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        read_served_model(tmp_path / "missing")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"is not a checkpoint: it has no config\.json"):
        read_served_model(tmp_path)


def test_no_weights(release: Path) -> None:
    for file in release.glob("model*"):
        file.unlink()
    with pytest.raises(MissingFileError, match="no safetensors file"):
        read_served_model(release)


def test_missing_shard(release: Path) -> None:
    next(release.glob("*.safetensors")).unlink()
    with pytest.raises(MissingFileError, match="names the shard"):
        read_served_model(release)


def test_truncated_shard(release: Path) -> None:
    shard = next(release.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TruncatedShardError, match=shard.name):
        read_served_model(release)


def test_unfinished_release(release: Path) -> None:
    (release / ".moe4").mkdir()
    (release / ".moe4" / "journal.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="unfinished release"):
        read_served_model(release)


def test_not_a_language_model(release: Path) -> None:
    edit(release / "config.json", architectures=None)
    with pytest.raises(CheckpointError, match="names no architecture"):
        read_served_model(release)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
