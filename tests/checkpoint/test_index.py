"""One set of rules for a checkpoint's files, for every part of moe4 that opens one."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moe4.checkpoint.index import INDEX_NAME, CheckpointIndex
from moe4.checkpoint.source import Checkpoint
from moe4.deploy.sizing.release_size import read_release
from moe4.errors import CheckpointError, Moe4Error
from moe4.files.regular import read_json_object
from moe4.serve.model import read_served_model

CONFIG = {"model_type": "another", "architectures": ["X"], "num_hidden_layers": 1}
ONE, TWO = "model-1-of-2.safetensors", "model-2-of-2.safetensors"


def write(folder: Path) -> Path:
    """Write two shards with their index."""
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, folder / ONE)
    save_file({"b": torch.ones(3)}, folder / TWO)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_index(folder, {"a": ONE, "b": TWO})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def replace_by(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return apply


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name must be short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_text("{}")
    path.symlink_to(outside)


def link_in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


def listed(weight_map: Any) -> Callable[[Path], None]:
    return lambda folder: write_index(folder, weight_map)


def raw(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe as shard": (replace_by(ONE, os.mkfifo), f"{ONE} is a named pipe, not a regular file"),
    "socket as shard": (replace_by(ONE, make_socket), f"{ONE} is a socket, not a regular file"),
    "folder as shard": (replace_by(ONE, Path.mkdir), f"{ONE} is a folder, not a regular file"),
    "device as shard": (replace_by(ONE, lambda p: p.symlink_to("/dev/zero")), "link to /dev/zero, outside"),
    "pipe as index": (replace_by(INDEX_NAME, os.mkfifo), "index.json is a named pipe"),
    "folder as index": (replace_by(INDEX_NAME, Path.mkdir), "index.json is a folder"),
    "pipe as config": (replace_by("config.json", os.mkfifo), "config.json is a named pipe"),
    "pipe as tokenizer": (replace_by("tokenizer.json", os.mkfifo), "tokenizer.json is a named pipe"),
    "shard outside": (replace_by(ONE, link_out), f"{ONE} is a link to .*outside, outside .*model"),
    "config outside": (replace_by("config.json", link_out), "config.json is a link to .*outside, outside"),
    "template outside": (replace_by("chat_template.jinja", link_out), "jinja is a link to .*, outside"),
    "link to nothing": (
        replace_by(ONE, lambda p: p.symlink_to("gone")),
        f"{ONE} is a link to gone, which does not exist",
    ),
    "links in a circle": (replace_by(ONE, link_in_a_circle), f"{ONE} is a link that leads in a circle"),
    "name outside": (listed({"a": "../model.safetensors"}), "not a safetensors file inside the folder"),
    "absolute name": (listed({"a": "/m.safetensors"}), "not a safetensors file inside the folder"),
    "name with a dot": (listed({"a": f"./{ONE}", "b": TWO}), "not a safetensors file inside the folder"),
    "empty name": (listed({"a": ""}), "names '', which is not a safetensors file"),
    "name with a line break": (listed({"a": "a\nb.safetensors"}), r"names 'a\\nb.safetensors', which is not"),
    "pickle": (listed({"a": "model.bin"}), "not a safetensors file inside the folder"),
    "number as name": (listed({"a": 7}), "weight_map gives a 7, not a shard's name"),
    "list as name": (listed({"a": [ONE]}), r"weight_map gives a \[.*\], not a shard's name"),
    "map that is a list": (listed([ONE]), "has no weight_map"),
    "empty tensor name": (listed({"": ONE}), "'' cannot be the name of a tensor"),
    "tensor name with an escape": (listed({"a\x1b[2J": ONE}), "cannot be the name of a tensor"),
    "shard that is missing": (
        listed({"a": ONE, "b": "x.safetensors"}),
        "names the shard x.safetensors, which",
    ),
    "tensor that is missing": (listed({"c": ONE}), f"says {ONE} holds c; it does not"),
    "names that differ in case": (
        lambda f: (
            save_file({"c": torch.ones(1)}, f / ONE.upper().replace("SAFETENSORS", "safetensors")),
            write_index(f, {"a": ONE, "c": ONE.upper().replace("SAFETENSORS", "safetensors")}),
        ),
        "which some file systems take for one file",
    ),
    "index with a key twice": (
        raw(INDEX_NAME, b'{"weight_map": {"a": "x", "a": "y"}}'),
        "'a' is there twice",
    ),
    "index in UTF-16": (
        raw(INDEX_NAME, '{"weight_map": {}}'.encode("utf-16")),
        "cannot be read as JSON: not UTF-8",
    ),
    "deep config": (
        raw("config.json", b'{"a":' + b"[" * 70 + b"]" * 70 + b"}"),
        "nested deeper than 64 levels",
    ),
    "deeper config": (raw("config.json", b'{"a":' * 100_000), "nested deeper than 64 levels"),
    "config with NaN": (raw("config.json", b'{"a": NaN}'), "NaN is not a JSON value"),
    "config with 1e999": (raw("config.json", b'{"a": 1e999}'), "too large for a double"),
    "config with many digits": (raw("config.json", b'{"a": ' + b"9" * 4000 + b"}"), "has 4000 digits"),
    "config with half a surrogate pair": (
        raw("config.json", b'{"a": {"b": ["\\ud800"]}}'),
        "'a.b.0' contains half of a surrogate pair",
    ),
    "config with such a key": (raw("config.json", b'{"\\udfff": 1}'), "contains half of a surrogate pair"),
    "config that is a list": (raw("config.json", b"[]"), "must hold a JSON object, found list"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize(
    "reader",
    [
        CheckpointIndex,
        Checkpoint,
        read_served_model,
        lambda f: read_release(str(f)),
    ],
)
def test_every_reader_refuses_the_same(reader: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    breaks, message = BAD[name]
    folder = write(tmp_path / "model")
    breaks(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        reader(folder)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_an_index_may_name_scales_of_weights_that_are_plain_by_now(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    index = json.loads((folder / INDEX_NAME).read_text())
    name, shard = next(iter(index["weight_map"].items()))
    index["weight_map"][f"{name}_scale_inv"] = shard
    (folder / INDEX_NAME).write_text(json.dumps(index))
    assert f"{name}_scale_inv" not in Checkpoint(folder).tensors
    index["weight_map"]["nothing_scale_inv"] = shard
    (folder / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="holds nothing_scale_inv; it does not"):
        Checkpoint(folder)


def test_a_snapshot_of_the_hubs_cache(tmp_path: Path) -> None:
    """Also one whose folder, or whose whole cache, is reached by a link."""
    cache = tmp_path / "disk" / "models--org--name"
    plain = write(tmp_path / "plain")
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    (tmp_path / "hub").symlink_to(tmp_path / "disk")
    (tmp_path / "mine").symlink_to(snapshot)
    for folder in (
        snapshot,
        tmp_path / "hub" / "models--org--name" / "snapshots" / "0123",
        tmp_path / "mine",
    ):
        assert set(CheckpointIndex(folder).tensors) == {"a", "b"}
        assert torch.equal(Checkpoint(folder).load("b"), torch.ones(3))
        assert read_served_model(folder).folder == folder
    (snapshot / "other.json").symlink_to(Path("..") / ".." / "refs")
    with pytest.raises(CheckpointError, match=r"other\.json is a link to .*refs, outside"):
        CheckpointIndex(snapshot)


def test_consolidated_weights_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("consolidated", "model"):
        save_file({name: torch.ones(2)}, folder / f"{name}.safetensors")
    assert list(CheckpointIndex(folder).tensors) == ["model"]
    (folder / "model.safetensors").unlink()
    assert list(CheckpointIndex(folder).tensors) == ["consolidated"]


def test_a_tensor_that_the_index_does_not_name_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    save_file({"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(1)}, folder / ONE)
    index = CheckpointIndex(folder)
    assert index.unlisted == {"b": ONE, "c": ONE}
    assert torch.equal(Checkpoint(folder).load("b"), torch.ones(3))  # the copy that the index names


def test_problems_can_be_collected(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / TWO).unlink()
    write_index(folder, {"a": ONE, "x": ONE, "b": TWO})
    problems: list[str] = []
    index = CheckpointIndex(folder, problems)
    assert list(index.tensors) == ["a"]
    assert [f"holds {word}" in " ".join(problems) for word in ("x",)] == [True]
    assert any(f"names the shard {TWO}" in problem for problem in problems)


def test_numbers_of_real_tokenizers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(
        '{"model_max_length": 1000000000000000019884624838656, "x": 1.5e-5, "y": "\\ud83d\\ude00"}'
    )
    assert read_json_object(path) == {
        "model_max_length": 1000000000000000019884624838656,
        "x": 1.5e-5,
        "y": "😀",
    }


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 200_000, '{"a": 1,}', "\x00", '"\\ud800"', "-" * 9, "tru", "\ufeff{}"]
)
def test_no_text_raises_anything_else(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(Moe4Error, match=r"x\.json"):
        read_json_object(path)


def test_side_files_go_by_their_names_in_any_case(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    for name in ("Readme.md", "extra.BIN", "tokenizer.json", "Config.JSON"):
        (folder / name).write_text("{}")
    assert [path.name for path in Checkpoint(folder).side_files()] == ["tokenizer.json"]
    for name in (os.fsdecode(b"bad\xff.txt"), "two\nlines.txt"):
        (folder / name).write_text("x")
        with pytest.raises(CheckpointError, match=r"holds '(bad|two)\\.*\.txt', a name that"):
            Checkpoint(folder)
        (folder / name).unlink()
