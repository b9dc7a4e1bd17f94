"""What has been committed, one JSON line each, and the fingerprint that a resumed run must match.

    {"begin": {"moe4": version, "source": sha256, "recipe": sha256, "documents": sha256, ...}}
    {"shard": "model-00001-of-00007.safetensors", "sha256": ..., "bytes": ..., "kept": {file: sha256, ...}}
    ...

A line is appended and synced only after everything it vouches for is durable: the shard, and the files in the
work folder that the rest of the run needs. A line torn by a crash lacks its newline and is cut off when the
journal is opened.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from moe4.errors import ResumeError
from moe4.files.durable import append_line, file_sha256, sync_folder, write_file
from moe4.schema import Foreign, Own, parse
from moe4.strict_json import parse_json

JOURNAL_NAME = "journal.jsonl"
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


class Environment(Foreign):
    """What the journal itself uses of the run's environment."""

    threads: Annotated[int, Field(ge=1, le=4096)]


class Begin(Foreign):
    """The fingerprint of a run, and what is kept beside it."""

    moe4: str
    source: Hash
    recipe: Hash
    documents: Hash | None
    calibration: Hash | None
    probe: Hash | None
    side_files: dict[FileName, Hash]
    environment: Environment
    recipe_values: dict[str, Any]
    versions: dict[str, str]
    source_files: dict[str, list[int]]


class BeginLine(Own):
    """The first line."""

    begin: Begin


class ShardLine(Own):
    """Any other."""

    shard: FileName
    sha256: Hash
    bytes: Annotated[int, Field(ge=0)]
    kept: dict[FileName, Hash]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedShard:
    """A shard that is in the release, whole."""

    name: str
    sha256: str
    num_bytes: int
    kept: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files it left in the work folder, by name."""


class Journal:
    """The journal of one run, in its work folder."""

    def __init__(self, work_folder: Path) -> None:
        self.path = work_folder / JOURNAL_NAME
        self.begin: dict[str, Any] | None = None
        self.shards: list[CommittedShard] = []
        if self.path.is_file():
            self._read()

    @property
    def threads(self) -> int | None:
        """Threads of each process of the run that was begun; None if none was."""
        return None if self.begin is None else int(self.begin["environment"]["threads"])

    def start(self, begin: dict[str, Any]) -> None:
        """Write the first line of a new run."""
        assert self.begin is None
        self.begin = begin
        append_line(self.path, json.dumps({"begin": begin}))
        sync_folder(self.path.parent)

    def match(self, begin: dict[str, Any]) -> None:
        """Raise ResumeError unless this run was begun with all of the same."""
        assert self.begin is not None
        changed = describe_changes(self.begin, begin)
        if changed:
            raise ResumeError(
                f"{self.path.parent.parent} was begun with {changed}; "
                "resume with what it was begun with, or choose an empty folder"
            )

    def commit(self, shard: CommittedShard) -> None:
        """Record a shard. It, and what the next layer needs, must be durable already."""
        append_line(self.path, _encode(shard))
        self.shards.append(shard)

    def forget_last(self) -> None:
        """Take back the last shard, to do it again."""
        self.shards.pop()
        lines = [json.dumps({"begin": self.begin}), *map(_encode, self.shards)]
        write_file(self.path, "".join(f"{line}\n" for line in lines).encode(), self.path.parent)

    def check_shards(self, folder: Path) -> None:
        """Raise ResumeError if a committed shard has changed since."""
        for shard in self.shards:
            path = folder / shard.name
            if not is_unchanged(path, shard.sha256, shard.num_bytes):
                raise ResumeError(
                    f"{path} is not the file that was committed; begin again in an empty folder"
                )

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        try:
            lines = [parse_json(line) for line in whole.splitlines()]
            if lines:
                parse(BeginLine, lines[0], "line 1", ResumeError)
                self.begin = dict(lines[0]["begin"])
            for number, line in enumerate(lines[1:], start=2):
                found = parse(ShardLine, line, f"line {number}", ResumeError)
                self.shards.append(
                    CommittedShard(
                        name=found.shard, sha256=found.sha256, num_bytes=found.bytes, kept=found.kept
                    )
                )
        except (ValueError, ResumeError) as error:
            raise ResumeError(f"{self.path} is damaged: {error}; begin again in an empty folder") from None


def is_unchanged(path: Path, sha256: str | None, num_bytes: int | None = None) -> bool:
    """Say whether a file, not a link to one, is there with this SHA-256 (and size)."""
    if path.is_symlink() or not path.is_file():
        return False
    if num_bytes is not None and path.stat().st_size != num_bytes:
        return False
    return file_sha256(path) == sha256


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two fingerprints, in words; empty if nothing does.

    `recipe_values`, the resolved recipe, is used to say what in a recipe differs, where both have it.
    """
    changes = []
    for key, text in FINGERPRINT_TEXTS.items():
        if before.get(key) == now.get(key):
            continue
        if key == "calibration" and before.get("documents") != now.get("documents"):
            continue  # other documents have other tokens
        detail = ""
        if key == "moe4":
            detail = f" ({before.get(key)}, now {now.get(key)})"
        elif key == "recipe" and "recipe_values" in before and "recipe_values" in now:
            values = _differing(before["recipe_values"], now["recipe_values"])
            detail = f" ({'; '.join(values)})" if values else ""
        elif key == "environment":
            detail = f" ({'; '.join(_differing(before.get(key) or {}, now[key]))})"
        elif key == "side_files":
            one, other = before.get(key) or {}, now.get(key) or {}
            names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
            detail = f" ({', '.join(names)})"
        changes.append(f"another {text}{detail}")
    return " and ".join(changes)


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


def _encode(shard: CommittedShard) -> str:
    return json.dumps(
        {"shard": shard.name, "sha256": shard.sha256, "bytes": shard.num_bytes, "kept": shard.kept}
    )
