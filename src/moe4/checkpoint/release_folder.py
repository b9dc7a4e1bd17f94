"""The output folder: what it holds before a run, and how a release is finished in it.

While a run is under way, `OUT/.moe4` holds its journal and whatever is not final; it goes at the end. The
index and the config are written last, so nothing mistakes an unfinished release for a whole one. In the work
folder only regular files with names that a run gives are touched; where there is anything else, nothing is.
"""

import contextlib
import enum
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from moe4.arguments import argument
from moe4.checkpoint.header import TensorSpec
from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME
from moe4.checkpoint.journal import JOURNAL_NAME, Journal
from moe4.errors import CheckpointError, DiskSpaceError, OutputError, OutputNotEmptyError
from moe4.files.durable import (
    PARTIAL_SUFFIX,
    kind_of,
    read_pieces,
    sync_folder,
    write_file,
    write_pieces,
)
from moe4.strict_json import JsonObject
from moe4.units import format_bytes

WORK_NAME = ".moe4"
LOCK_NAME = "lock"
REPORT_NAME = "moe4-report.json"
# Whatever a run leaves in its work folder; .nfs* is what a network file system makes of a removed, open file.
WORK_FILES = re.compile(
    r"lock|journal\.jsonl|rest\.json|tokens\.json|layer-\d{5,}\.json|(hidden|probe)-\d{5,}\.bin|probe-\w+-\w+"
    r"|(hidden|inputs|total)-\d{5,}\.partial|model-\d{5,}-of-\d{5,}\.safetensors\.partial"
    r"|source-\d{5,}\.(safetensors|incomplete)|tuning\.json|tuning-\d{5,}\.safetensors(\.partial)?"
    r"|\.moe4-\w+\.partial|\.nfs\w+"
)


class State(enum.Enum):
    """What an output folder holds."""

    EMPTY = "empty"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


class ReleaseFolder:
    """An output folder and its work folder. Holds a lock on it while it is open."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Look at the folder and create it. Raises OutputNotEmptyError or OutputError."""
        self.folder = folder
        self.work = self.work_folder(folder)
        self._lock: IO[bytes] | None = None
        self.state = _look_at(folder)
        if self.state is State.UNFINISHED and not resume:
            self._lock_folder()  # a run that is under way is another matter than one that was killed
            self.close()
            raise OutputNotEmptyError(
                f"{folder} holds an unfinished run; add {argument('resume', True)} to continue it, or "
                "choose an empty folder"
            )
        if self.state is State.FINISHED and not resume:
            raise OutputNotEmptyError(f"{folder} holds a finished release; choose an empty folder")

    @staticmethod
    def work_folder(folder: Path) -> Path:
        """Return where a run into `folder` keeps what is not final."""
        return folder / WORK_NAME

    def open(self) -> Journal:
        """Create the work folder, take the lock, remove a killed run's leftovers, open the journal.

        Raises OutputError if another run has the lock, or had it until now.
        """
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise OutputError(f"{self.folder} cannot be written: {error.strerror}") from None
        self._lock_folder()
        if _look_at(self.folder) is not self.state:
            self.close()
            raise OutputError(f"another moe4 command was writing to {self.folder}; start again")
        for leftover in self.work.glob(f"*{PARTIAL_SUFFIX}"):
            leftover.unlink()
        return Journal(self.work)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _lock_folder(self) -> None:
        """Take the lock, which the system takes back when this process ends, however it ends."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._lock = os.fdopen(os.open(self.work / LOCK_NAME, flags, 0o666), "wb")
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise OutputError(f"another moe4 command is writing to {self.folder}") from None

    def require_space(self, needed_bytes: int) -> None:
        """Raise DiskSpaceError unless the volume has room."""
        require_space(self.folder, needed_bytes)

    def require_own_files(self, names: Collection[str]) -> None:
        """Raise OutputError if the folder holds what this run will not write: hidden files are passed over.

        names: of the release's files. What has one of them must be a file: it may be replaced.
        """
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith("."):
                continue
            kind = kind_of(path)
            if kind == "a file" and path.name in names:
                continue
            raise OutputError(
                f"{path} is {kind} that moe4 did not make; move it away, or choose an empty folder"
            )

    def copy_side_files(self, files: Sequence[Path], digests: Mapping[str, str]) -> None:
        """Copy tokenizer, template, licence and the like byte for byte.

        Raises CheckpointError if one's SHA-256 is not that in `digests`, by name.
        """
        for source in files:
            pieces = _read_unchanged(source, digests[source.name])
            write_pieces(self.folder / source.name, pieces, self.work)

    def finish(self, last: Mapping[str, bytes]) -> None:
        """Write a release's last files, by name, in their order; then remove the work folder."""
        for name, data in last.items():
            write_file(self.folder / name, data, self.work)
        self.remove_work_folder()

    def discard(self) -> None:
        """Remove what a run that comes to nothing has left, and the folder if nothing else is in it."""
        self.remove_work_folder()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def remove_work_folder(self) -> None:
        """Remove the work folder of a finished release, the journal first: it needs the other files.

        Raises OutputError, with nothing removed, if something that is not a run's has come into it.
        """
        if kind_of(self.work) is not None:
            check_work_folder(self.work)
            (self.work / JOURNAL_NAME).unlink(missing_ok=True)
            sync_folder(self.work)
            for path in self.work.iterdir():
                path.unlink()
            self.work.rmdir()
            sync_folder(self.folder)


def check_work_folder(work: Path) -> None:
    """Raise OutputError if a work folder is a link or no folder, or holds what no run has made."""
    kind = kind_of(work)
    if kind not in (None, "a folder"):
        raise OutputError(
            f"{work} is {kind}, not a folder of moe4's; move it away, or choose an empty folder"
        )
    for path in sorted(work.iterdir()) if kind else ():
        kind = kind_of(path) or "a file"
        if kind != "a file" or WORK_FILES.fullmatch(path.name) is None:
            what = f"is {kind}, which" if kind != "a file" else "is a file that"
            raise OutputError(f"{path} {what} moe4 did not make; move it away, or choose an empty folder")


def _read_unchanged(path: Path, sha256: str) -> Iterator[bytes]:
    """Yield a file's bytes; at their end raise CheckpointError if their SHA-256 is another."""
    digest = hashlib.sha256()
    for piece in read_pieces(path):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != sha256:
        raise CheckpointError(
            f"{path} has changed while its release was made; put the old file back and run again "
            f"with {argument('resume', True)}"
        )


def make_index(shards: Sequence[tuple[str, Sequence[TensorSpec]]]) -> JsonObject:
    """Return the index of shards: a name each, and what it holds."""
    weight_map = {spec.name: name for name, specs in shards for spec in specs}
    total = sum(spec.num_bytes for _, specs in shards for spec in specs)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def free_bytes(folder: Path) -> int:
    """Return the free space on a folder's volume, also before the folder exists."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise DiskSpaceError unless the folder's volume has room."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise DiskSpaceError(
            f"{folder} needs {format_bytes(needed_bytes)} and its volume has {format_bytes(free)} free"
        )


def dump_json(data: JsonObject) -> bytes:
    """Return JSON as a release stores it: indented, a newline at the end."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _look_at(folder: Path) -> State:
    if not folder.exists():
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link to {folder.readlink()}, which does not exist")
        return State.EMPTY
    if not folder.is_dir():
        raise OutputNotEmptyError(f"{folder} is {kind_of(folder.resolve())}; choose a folder")
    check_work_folder(folder / WORK_NAME)
    names = {path.name for path in folder.iterdir()}
    if (folder / WORK_NAME / JOURNAL_NAME).is_file():
        return State.UNFINISHED
    if names <= {WORK_NAME}:
        return State.EMPTY
    if {REPORT_NAME, CONFIG_NAME, INDEX_NAME} <= names:
        return State.FINISHED
    raise OutputNotEmptyError(
        f"{folder} holds other files, such as {sorted(names)[0]}; choose an empty folder"
    )
