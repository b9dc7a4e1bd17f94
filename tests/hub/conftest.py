"""A stand-in hub with a six-shard checkpoint, and huggingface_hub sent there."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from release_fixtures import _one_thread, calibration, small_source
from stand_in_hub import REPOSITORY, StandInHub, split_in_shards

from moe4.hub import repository

__all__ = ["_one_thread", "calibration", "small_source"]


@pytest.fixture(scope="session")
def six(small_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint in six shards, with a licence, and a file that no release takes."""
    folder = split_in_shards(small_source, tmp_path_factory.mktemp("hub") / "six", 6)
    (folder / "LICENSE").write_text("a licence\n")
    (folder / "pytorch_model.bin").write_bytes(b"weights in another form")
    (folder / "figures").mkdir()
    (folder / "figures" / "plot.svg").write_text("<svg/>")
    return folder


@pytest.fixture
def hub(six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """Stands in for the hub in this process; waits between tries are short."""
    hub = StandInHub({REPOSITORY: [six]})
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(repository, "FIRST_WAIT_SECONDS", 0.01)
    yield hub
    hub.close()
