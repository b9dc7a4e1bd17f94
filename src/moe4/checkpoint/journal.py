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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moe4.errors import CheckpointError, ResumeError
from moe4.files.durable import append_line, file_sha256, sync_folder, write_file
from moe4.files.own import OwnFile
from moe4.files.regular import read_bytes
from moe4.fingerprint import FileName, Fingerprint, Hash, Pin, RunEnvironment, describe_changes
from moe4.schema import Own
from moe4.strict_json import JsonObject

JOURNAL_NAME = "journal.jsonl"
BEGIN_AGAIN = "begin again in an empty folder"


class Begin(Fingerprint):
    """The fingerprint of a run, whole, and what is kept beside it."""

    documents: Hash | None
    calibration: Hash | None
    probe: Hash | None
    side_files: dict[FileName, Hash]
    environment: RunEnvironment
    recipe_values: JsonObject
    """The resolved recipe; by its digest runs are told apart, by this what differs is named."""
    versions: dict[str, str]
    source_files: dict[str, list[int]]
    hub: Pin | None = None

    @property
    def num_threads(self) -> int:
        """Threads of each process."""
        assert self.environment.threads is not None  # see faults
        return self.environment.threads

    def fingerprint(self) -> Fingerprint:
        """Return what decides bytes, without what is kept beside it."""
        return Fingerprint(**{name: getattr(self, name) for name in Fingerprint.model_fields})

    def faults(self) -> Iterator[str]:
        """Yield what only a run that has not begun leaves open."""
        if self.environment.threads is None:
            yield "environment.threads must be a whole number, found null"


class BeginLine(Own):
    """The first line."""

    begin: Begin


class ShardLine(Own):
    """Any other."""

    shard: FileName
    sha256: Hash
    bytes: Annotated[int, Field(ge=0)]
    kept: dict[FileName, Hash]


BEGIN_LINE = OwnFile(form=BeginLine, error=ResumeError, remedy=BEGIN_AGAIN, writer=("begin", "moe4"))
SHARD_LINE = OwnFile(form=ShardLine, error=ResumeError, remedy=BEGIN_AGAIN)


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
        self.begin: Begin | None = None
        self.shards: list[CommittedShard] = []
        if self.path.is_file():
            self._read()

    @property
    def threads(self) -> int | None:
        """Threads of each process of the run that was begun; None if none was."""
        return None if self.begin is None else self.begin.num_threads

    def start(self, begin: Begin) -> None:
        """Write the first line of a new run."""
        assert self.begin is None
        self.begin = begin
        append_line(self.path, _encode_begin(begin))
        sync_folder(self.path.parent)

    def match(self, begin: Begin) -> None:
        """Raise ResumeError unless this run was begun with all of the same."""
        assert self.begin is not None
        changed = describe_changes(self.begin, begin, self.begin.recipe_values, begin.recipe_values)
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
        assert self.begin is not None
        lines = [_encode_begin(self.begin), *map(_encode, self.shards)]
        write_file(self.path, "".join(f"{line}\n" for line in lines).encode(), self.path.parent)

    def check_shards(self, folder: Path) -> None:
        """Raise ResumeError if a committed shard has changed since."""
        for shard in self.shards:
            path = folder / shard.name
            if not is_unchanged(path, shard.sha256, shard.num_bytes):
                raise ResumeError(f"{path} is not the file that was committed; {BEGIN_AGAIN}")

    def _read(self) -> None:
        try:
            data = read_bytes(self.path)
        except CheckpointError as error:
            raise ResumeError(f"{error}; {BEGIN_AGAIN}") from None
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        for number, line in enumerate(whole.splitlines(), start=1):
            where = f"{self.path}, line {number},"
            if number == 1:
                self.begin = BEGIN_LINE.decode(line, where).begin
                continue
            found = SHARD_LINE.decode(line, where)
            self.shards.append(
                CommittedShard(name=found.shard, sha256=found.sha256, num_bytes=found.bytes, kept=found.kept)
            )


def read_begin(work_folder: Path) -> Begin | None:
    """Return what a run there was begun with, without touching anything; None if no line tells."""
    path = work_folder / JOURNAL_NAME
    if path.is_symlink() or not path.is_file():
        return None
    try:
        line, newline, _ = read_bytes(path).partition(b"\n")
        return BEGIN_LINE.decode(line, path).begin if newline else None
    except (CheckpointError, ResumeError):
        return None  # who opens the journal says so


def is_unchanged(path: Path, sha256: str | None, most_bytes: int) -> bool:
    """Say whether a file, not a link to one, is there with this SHA-256; one of more bytes is not read."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > most_bytes:
        return False
    return file_sha256(path) == sha256


def _encode_begin(begin: Begin) -> str:
    return json.dumps(BeginLine(begin=begin).as_dict())


def _encode(shard: CommittedShard) -> str:
    line = ShardLine(shard=shard.name, sha256=shard.sha256, bytes=shard.num_bytes, kept=shard.kept)
    return json.dumps(line.as_dict())
