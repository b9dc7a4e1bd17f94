"""What lies beside the weights: what is a release's, what stays, and what leads out of the checkpoint."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from model_fixtures import reference_config

from moe4.checkpoint.index import check_objects
from moe4.checkpoint.side_files import find_side_files
from moe4.config import parse_config
from moe4.errors import CheckpointError, UnsafePathError
from moe4.publish.push import list_uploads

CONFIG = parse_config(reference_config())
SHARDS = ("model.safetensors", "more/model-2.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    for name in ("config.json", "tokenizer.json", "README.md", "moe4-report.json", ".gitattributes", *SHARDS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (tmp_path / "secret.json").write_text("a secret")
    return folder


def test_what_stays_behind_is_named(checkpoint: Path) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "rag.jinja").write_text("x")
    (checkpoint / ".cache").mkdir()
    for name in ("pytorch_model.bin", "consolidated.safetensors", "chat_template.jinja"):
        (checkpoint / name).write_text("x")
    for name in ("Readme.md", "MODEL.PT"):
        (checkpoint / name).write_text("x")
    found = find_side_files(checkpoint, SHARDS)
    assert [path.name for path in found.files] == ["chat_template.jinja", "tokenizer.json"]
    assert found.left_out == (
        "MODEL.PT",
        "additional_chat_templates/",
        "consolidated.safetensors",
        "pytorch_model.bin",
    )


def link_by_way_of_a_link(path: Path, secret: Path) -> None:
    path.with_name(".hop").symlink_to(secret)
    path.symlink_to(".hop")


OUT: dict[str, Callable[[Path, Path], None]] = {
    "an absolute link": lambda path, secret: path.symlink_to(secret),
    "a relative link": lambda path, _: path.symlink_to("../secret.json"),
    "a link to a link": link_by_way_of_a_link,
    "a link to nowhere": lambda path, _: path.symlink_to("gone"),
    "a link to itself": lambda path, _: path.symlink_to(path.name),
    "a device": lambda path, _: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", ["vocab.txt", "config.json"])
@pytest.mark.parametrize("case", OUT)
def test_links_that_lead_out_are_refused_by_name(case: str, name: str, checkpoint: Path) -> None:
    path = checkpoint / name
    path.unlink(missing_ok=True)
    OUT[case](path, checkpoint.parent / "secret.json")
    words = {"a link to nowhere": "does not exist", "a link to itself": "in a circle"}.get(case, "outside")
    with pytest.raises(CheckpointError, match=rf"{name} is a link .*{words}"):
        find_side_files(checkpoint, SHARDS)
    with pytest.raises(CheckpointError, match=name):
        list_uploads(checkpoint)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 100])
def test_a_damaged_file_that_every_server_reads(name: str, text: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{name} (cannot be read as JSON|must hold a JSON object)"):
        check_objects(checkpoint, CONFIG)


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [2560, 1 << 20, -2, "0", 0.5, True, {}])
def test_a_token_that_the_model_does_not_have(name: str, value: object, checkpoint: Path) -> None:
    """As config.json is held to the vocabulary, so is the file that a server takes its stops from."""
    (checkpoint / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(CheckpointError, match=rf"generation_config.json: {name} (is|must be) "):
        check_objects(checkpoint, CONFIG)
    with pytest.raises(CheckpointError, match=rf"config.json: {name} (is|must be) "):
        parse_config(reference_config(**{name: value}))


def test_tokens_that_a_model_may_name(checkpoint: Path) -> None:
    for names in (
        {"bos_token_id": None, "eos_token_id": [1, 2559], "pad_token_id": -1},
        {"bos_token_id": 0, "eos_token_id": 2559, "pad_token_id": 2559, "transformers_version": "5"},
        {"eos_token_id": None, "pad_token_id": None},
        {"eos_token_id": []},
    ):
        (checkpoint / "generation_config.json").write_text(json.dumps(names))
        check_objects(checkpoint, CONFIG)
        parse_config(reference_config(**names))
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [1, 2560, 7]}')
    with pytest.raises(CheckpointError, match="eos_token_id names 2560, not below the 2560 of vocab_size"):
        check_objects(checkpoint, CONFIG)


def test_a_name_that_is_not_utf8(checkpoint: Path) -> None:
    (checkpoint / os.fsdecode(b"notes-\xff.txt")).write_text("x")
    with pytest.raises(CheckpointError, match=r"holds 'notes-.*', a name that is not plain text; rename it"):
        find_side_files(checkpoint, SHARDS)


def test_a_folder_beside_with_the_same_beginning_is_outside(checkpoint: Path) -> None:
    beside = checkpoint.with_name("checkpoint-other")
    beside.mkdir()
    (beside / "x.txt").write_text("x")
    (checkpoint / "x.txt").symlink_to(beside / "x.txt")
    with pytest.raises(UnsafePathError, match="outside"):
        find_side_files(checkpoint, SHARDS)


def test_links_inside_are_followed(checkpoint: Path) -> None:
    (checkpoint / "LICENSE").symlink_to("more/LICENSE")
    (checkpoint / "more" / "LICENSE").write_text("x")
    assert [path.name for path in find_side_files(checkpoint, SHARDS).files] == ["LICENSE", "tokenizer.json"]
    assert "LICENSE" in [upload.name for upload in list_uploads(checkpoint)]


def test_the_hubs_cache(tmp_path: Path) -> None:
    """A snapshot is made of links to its repository's blobs, and to no other repository's."""
    repo, other = tmp_path / "models--me--mine", tmp_path / "models--me--other"
    for folder in (repo, other):
        (folder / "blobs").mkdir(parents=True)
        (folder / "blobs" / "abc").write_text("x")
    snapshot = repo / "snapshots" / "rev"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).symlink_to("../../blobs/abc")
    (tmp_path / "by-name").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "by-name"):
        found = find_side_files(folder, ("model.safetensors",))
        assert [path.name for path in found.files] == ["tokenizer.json"]
    (snapshot / "vocab.txt").symlink_to(other / "blobs" / "abc")
    with pytest.raises(UnsafePathError, match=r"vocab\.txt is a link to .*models--me--other"):
        find_side_files(snapshot, ("model.safetensors",))
