"""What the bytes of a release depend on, as a run's journal and its report have it.

A run is resumed only where all of it is the same; `describe_changes` says what is not.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from moe4.schema import Growing
from moe4.strict_json import JsonObject

FINGERPRINT_TEXTS = {
    "moe4": "version of moe4",
    "source": "source checkpoint",
    "recipe": "recipe",
    "documents": "calibration data",
    "calibration": "set of calibration tokens",
    "probe": "tokenizer or chat template",
    "side_files": "side file",
    "environment": "environment",
}

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]
Threads = Annotated[int, Field(ge=1, le=4096)]


class Pin(Growing):
    """A repository on the hub, the revision that was asked for, and the commit that it was."""

    repository: str
    revision: str
    commit: str

    def __str__(self) -> str:
        return f"{self.repository} at {self.commit[:12]}"


class RunEnvironment(Growing):
    """Where and with what a run computes; None for what it does not use."""

    device: str
    """`cpu`, or the name of the GPU."""
    processor: str | None
    """On a CPU: its maker, torch's class of instructions, and those for products."""
    products: str | None
    """On a CPU: bfloat16 or float32, the operands of GPTQ's large products."""
    columns: str | None
    """On a CPU: the path of GPTQ's loops over columns."""
    torch: str
    transformers: str
    variables: dict[str, str]
    """Those by which libraries round differently, as far as they are set."""
    threads: Threads | None
    """Of each process; None before that is known. A run that is resumed keeps those it was begun with."""

    def with_threads(self, threads: int | None) -> "RunEnvironment":
        """Return the same with another number of threads."""
        return self.model_copy(update={"threads": threads})


class Fingerprint(Growing):
    """Everything that decides bytes. Reports of older versions lack some of it."""

    moe4: str
    source: Hash
    recipe: Hash
    documents: Hash | None = None
    calibration: Hash | None = None
    probe: Hash | None = None
    side_files: dict[FileName, Hash] = Field(default_factory=dict)
    environment: RunEnvironment | None = None


def describe_changes(
    before: Fingerprint,
    now: Fingerprint,
    recipe_before: JsonObject | None = None,
    recipe_now: JsonObject | None = None,
) -> str:
    """Return what differs between two fingerprints, in words; empty if nothing does.

    The resolved recipes say what in a recipe differs, where both are given.
    """
    changes = []
    for key, text in FINGERPRINT_TEXTS.items():
        one, other = getattr(before, key), getattr(now, key)
        if one == other:
            continue
        if key == "calibration" and before.documents != now.documents:
            continue  # other documents have other tokens
        detail = ""
        if key == "moe4":
            detail = f" ({one}, now {other})"
        elif key == "recipe" and recipe_before and recipe_now:
            values = _differing(recipe_before, recipe_now)
            detail = f" ({'; '.join(values)})" if values else ""
        elif key == "environment":
            detail = f" ({'; '.join(_differing(_plain(one), _plain(other)))})"
        elif key == "side_files":
            names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
            detail = f" ({', '.join(names)})"
        changes.append(f"another {text}{detail}")
    return " and ".join(changes)


def _plain(environment: RunEnvironment | None) -> JsonObject:
    return {} if environment is None else environment.as_dict()


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `name old, now new` for each value that differs in nested tables."""
    found = []
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found.extend(_differing(one, other, f"{prefix}{name}."))
        elif one != other:
            found.append(f"{prefix}{name} {json.dumps(one)}, now {json.dumps(other)}")
    return found
