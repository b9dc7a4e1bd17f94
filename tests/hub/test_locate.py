"""A checkpoint is found in a folder or on the hub; what cannot be had is one line that says what to do."""

import errno
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError
from stand_in_hub import REPOSITORY, StandInHub, commit_of, split_in_shards

from moe4.checkpoint.side_files import find_side_files
from moe4.checkpoint.source import Checkpoint
from moe4.errors import CheckpointError, DiskSpaceError, HubError, Moe4Error
from moe4.hub import download as download_module
from moe4.hub.locate import locate, locate_source, short_name
from moe4.hub.repository import patiently


def test_a_repository_is_downloaded_whole_and_is_the_folder(hub: StandInHub, six: Path) -> None:
    found = locate_source(REPOSITORY)
    assert found.pin is not None
    assert found.pin.as_dict() == {"repository": REPOSITORY, "revision": "main", "commit": commit_of(six)}
    assert Checkpoint(found.folder).digest() == Checkpoint(six).digest()
    assert short_name(found.folder) == "six"
    here = find_side_files(six, Checkpoint(six).shards)
    there = find_side_files(found.folder, Checkpoint(six).shards, found.elsewhere)
    assert here.left_out == there.left_out == ("figures/", "pytorch_model.bin")
    assert here.digests() == there.digests()
    assert not any("pytorch_model.bin" in path for _, path, _ in hub.log)


def test_what_is_in_the_cache_is_not_asked_for_again(hub: StandInHub) -> None:
    folder = locate(REPOSITORY)
    hub.log.clear()
    assert locate(REPOSITORY) == folder
    assert all(path.startswith("/api/") for _, path, _ in hub.log)


def test_a_folder_wins_over_a_repository_of_its_name(
    hub: StandInHub, six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    split_in_shards(six, Path(REPOSITORY), 2)
    assert locate(REPOSITORY) == Path(REPOSITORY)
    assert hub.log == []
    with pytest.raises(HubError, match=f'^revision="main" is for a repository on the hub; {REPOSITORY}'):
        locate(REPOSITORY, "main")


def test_revisions(hub: StandInHub, six: Path, tmp_path: Path) -> None:
    other = split_in_shards(six, tmp_path / "other", 2)
    hub.repositories[REPOSITORY].append(other)
    assert locate(REPOSITORY).name == commit_of(other)
    assert locate(REPOSITORY, commit_of(six)).name == commit_of(six)
    assert locate(f"{REPOSITORY}@{commit_of(six)}").name == commit_of(six)
    with pytest.raises(HubError, match=f"{REPOSITORY} has no revision v9; give a branch, tag or commit"):
        locate(REPOSITORY, "v9")
    with pytest.raises(HubError, match="name two revisions; give one of them"):
        locate(f"{REPOSITORY}@main", "v9")
    hub.repositories[REPOSITORY].pop()


@pytest.mark.parametrize(
    ("faults", "token", "message"),
    [
        ({"gated": True}, None, "is gated: accept its conditions at .*/someone/six, then set HF_TOKEN to a "),
        ({"gated": True}, "wrong", "is gated: accept its conditions at .* with the account of your token"),
        (
            {"private": True},
            None,
            "neither a folder here nor a repository on .* HF_TOKEN, if it",
        ),
        ({"private": True}, "wrong", "check the spelling, or set a token that may read it"),
    ],
)
def test_what_may_not_be_read(
    faults: dict[str, bool],
    token: str | None,
    message: str,
    hub: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in faults.items():
        setattr(hub.faults, name, value)
    hub.faults.token = "hf_right"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as error:
        locate(REPOSITORY)
    assert "\n" not in str(error.value)
    assert "hf_" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.tokens.clear()
    locate(REPOSITORY)
    assert hub.tokens, "the token is sent to the hub"
    assert not [path for path in hub.tokens if path.startswith("/cdn/")], "and nowhere else"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("someone/sicks", "someone/sicks is neither a folder here nor a repository on the hub http://127"),
        (
            "./someone/six",
            "someone/six does not exist; give the folder of a checkpoint or release",
        ),
        ("six", "six does not exist; give the folder of a checkpoint or release, or its id on the hub, such"),
        ("https://huggingface.co/someone/six", "is an address; give the repository's id: someone/six"),
        ("someone/a--b", "not the id of a repository; expected OWNER/NAME|neither a folder here nor"),
    ],
)
def test_names_that_are_neither(where: str, message: str, hub: StandInHub) -> None:
    with pytest.raises(Moe4Error, match=message) as error:
        Checkpoint(locate(where))
    assert isinstance(error.value, CheckpointError | HubError)
    assert "\n" not in str(error.value)


def test_offline(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"nor in the hub's cache .* and HF_HUB_OFFLINE forbids"):
        locate(REPOSITORY)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    folder = locate(REPOSITORY)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said: list[str] = []
    assert locate(REPOSITORY, say=said.append) == folder
    assert said == [f"the hub cannot be reached: using {REPOSITORY} at {folder.name[:12]} from its cache"]
    (folder / "model-00002-of-00006.safetensors").unlink()
    with pytest.raises(HubError, match="lacks 1 shards, such as model-00002-of-00006"):
        locate(REPOSITORY)


def test_a_hub_that_does_not_answer(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HubError,
        match=r"is not a folder here, and the hub http://127\.0\.0\.1:9 does not answer .*; check",
    ):
        locate(REPOSITORY)


def test_a_cache_without_room(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(
        DiskSpaceError, match="free; set HF_HOME to a larger one, or quantize with stream=True"
    ):
        locate(REPOSITORY)
    assert not any(
        "safetensors" in path and method == "GET" for method, path, _ in hub.log if ".json" not in path
    )


def test_what_is_no_checkpoint(hub: StandInHub, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_text("{}")
    hub.repositories["someone/data"] = [tmp_path / "data"]
    with pytest.raises(HubError, match="has no safetensors files, and moe4 reads no others"):
        locate("someone/data")


def test_a_session_that_another_thread_closed_is_no_fault_of_the_hub() -> None:
    faults = [OSError(errno.EBADF, "Bad file descriptor"), RuntimeError("the client has been closed.")] * 2

    def ask() -> str:
        if faults:
            raise HTTPError("broke off") from faults.pop()
        return "answer"

    assert patiently(ask, REPOSITORY, "main", num_tries=1) == "answer"


def test_a_session_that_is_always_closed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe4.hub.repository.FIRST_WAIT_SECONDS", 0.0)

    def ask() -> str:
        raise RuntimeError("Cannot send a request, as the client has been closed.")

    with pytest.raises(HubError, match="does not answer"):
        patiently(ask, REPOSITORY, "main", num_tries=2)
