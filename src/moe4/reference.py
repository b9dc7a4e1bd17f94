"""The reference model's data, by one door: the word `reference` where a command takes a file of data.

k2-tiny's generator and its held-out data come with the distribution moe4-k2-tiny; nothing else of moe4 knows
of it.
"""

from collections.abc import Iterator
from pathlib import Path

from moe4 import extras
from moe4.strict_json import JsonObject

NAME = "reference"
TEXT = "heldout-chats.jsonl"
TOOL_TURNS = "heldout-tools.jsonl"


def is_asked_for(path: Path | None) -> bool:
    """Say whether a user's file is the word that stands for the reference data; `./reference` is a file."""
    return path is not None and str(path) == NAME


def generate_documents(num_documents: int, seed: int) -> Iterator[JsonObject]:
    """Yield calibration documents, {messages, tools} or {text}. Raises MissingDependencyError."""
    extras.require("k2tiny")
    from k2tiny.corpus import calibration_documents

    yield from calibration_documents(num_documents, seed)


def data_folder() -> Path:
    """Return the folder of the held-out data. Raises MissingDependencyError where there is none."""
    extras.require("k2tiny")
    from k2tiny.places import DATA

    return Path(DATA)
