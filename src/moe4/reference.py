"""The reference model's data, by one door: the word `reference` where a command takes a file of data.

k2-tiny's generator and its held-out data come with the distribution k2tiny, which a checkout installs
(`pip install -e reference`); nothing else of moe4 knows of it.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe4.errors import MissingDependencyError

NAME = "reference"
TEXT = "heldout-chats.jsonl"
TOOL_TURNS = "heldout-tools.jsonl"


def is_asked_for(path: Path | None) -> bool:
    """Say whether a user's file is the word that stands for the reference data; `./reference` is a file."""
    return path is not None and str(path) == NAME


def generate_documents(num_documents: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield calibration documents, {messages, tools} or {text}. Raises MissingDependencyError."""
    _require()
    from k2tiny.corpus import calibration_documents

    yield from calibration_documents(num_documents, seed)


def data_folder() -> Path:
    """Return the folder of the held-out data. Raises MissingDependencyError where there is none."""
    folder = _require().resolve().parents[1] / "data"
    if not folder.is_dir():
        raise MissingDependencyError(
            f"there are no reference data in {folder}: install k2tiny from a checkout"
        )
    return folder


def _require() -> Path:
    """Return the file of the package k2tiny. Raises MissingDependencyError where it is not installed."""
    spec = importlib.util.find_spec("k2tiny")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "the reference data are not installed: in a checkout of moe4, pip install -e reference"
        )
    return Path(spec.origin)
