"""Calibration data as they are published: JSON lines, a JSON array, Parquet, or a data set of the hub.

    chats.jsonl, chats.json.gz    a document a line, or one array of them; also compressed (packed_files.py)
    train.parquet                 a document a row
    owner/name, owner/name:part   a data set of the hub, or a folder of one: with the name of a split

What a file holds is told by its first bytes, not by its name. Nothing of a data set is executed.
"""

import codecs
import io
import random
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from moe4 import extras
from moe4.arguments import argument
from moe4.calibration import parquet
from moe4.calibration.formats import COLUMNS, Document, Row, parse_line, parse_row
from moe4.calibration.json_array import array_entries
from moe4.calibration.packed_files import open_unpacked
from moe4.calibration.tokenizer import output_to_stderr
from moe4.errors import CalibrationError, CheckpointError
from moe4.escape import visible
from moe4.files.regular import lines_of

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
NAMED_COLUMNS = 8

Item = TypeVar("Item")
Choose = Callable[[Iterable[Item]], list[Item]]
"""Draws from items as they come; what it returns is in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The documents that were drawn from some data."""

    rows: list[Row]
    num_rows: int
    """Of which they were drawn."""
    name: str
    container: str

    @property
    def documents(self) -> list[tuple[str, Document]]:
        """(place, document) of each."""
        return [(row.where, row.document) for row in self.rows]

    def describe(self) -> str:
        """Say in one line what was recognized."""
        forms = Counter(row.form for row in self.rows)
        texts = [f"{form}{'' if len(forms) == 1 else f' ({count})'}" for form, count in forms.most_common()]
        with_tools = sum("tools" in row.document for row in self.rows)
        ignored = sorted({name for row in self.rows for name in row.ignored})
        more = f" and {len(ignored) - NAMED_COLUMNS} more" if len(ignored) > NAMED_COLUMNS else ""
        drawn = f"{len(self.rows):,} documents"
        if self.num_rows > len(self.rows):
            drawn += f" of {self.num_rows:,}"
        line = f"calibration: {drawn} from {self.name} ({self.container}): {', '.join(texts)}"
        line += f"; {with_tools:,} with tools" if with_tools else ""
        line += f"; ignored: {', '.join(ignored[:NAMED_COLUMNS])}{more}" if ignored else ""
        return visible(line)


def draw_from(path: Path, split: str | None, choose: Choose[Any]) -> Drawn:
    """Draw documents from a file, a folder of a data set, or a data set of the hub.

    `choose` draws among row numbers or rows. Raises CalibrationError with the place of a row that cannot be
    used, MissingDependencyError where a library is not installed.
    """
    name = path.name.encode(errors="replace").decode()  # goes into the report, which is UTF-8
    mode = _mode(path)
    if stat.S_ISDIR(mode) if mode is not None else split is not None:
        return _draw_from_data_set(path, split, choose)
    if split is not None:
        raise CalibrationError(f"{path} is a file, which has no splits; leave out the split {split!r}")
    if mode is None and HUB_NAME.fullmatch(str(path)):
        raise CalibrationError(
            f"{path} does not exist; for the hub's data set of that name add its split, such as "
            f"{argument('calibration_split', 'train')}"
        )
    try:
        file, packing = open_unpacked(path)
        with file:
            head = file.peek(4)[:4]
            if head == parquet.SIGNATURE and packing is None:
                return _draw_from_parquet(path, name, choose)
            is_array = _skip_blank(file) == b"["
            rows = _array_rows(file, path) if is_array else _line_rows(file, path)
            container = "a JSON array" if is_array else "JSON lines"
            counted = _Counted(rows)
            chosen = choose(counted)
    except CheckpointError as error:
        raise CalibrationError(f"calibration file {error}") from None
    if not counted.number:
        raise CalibrationError(f"calibration file {path} holds no documents")
    container += f", {packing}" if packing else ""
    return Drawn(rows=chosen, num_rows=counted.number, name=name, container=container)


def choose_at_random(num: int, seed: int) -> Choose[Any]:
    """Return what draws `num` items, each as likely as any other, in their order."""

    def choose(items: Iterable[Any]) -> list[Any]:
        generator = random.Random(seed)
        chosen: list[tuple[int, Any]] = []
        for number, item in enumerate(items):
            if number < num:
                chosen.append((number, item))
            else:
                slot = generator.randrange(number + 1)
                if slot < num:
                    chosen[slot] = (number, item)
        return [item for _, item in sorted(chosen, key=lambda pair: pair[0])]

    return choose


def _mode(path: Path) -> int | None:
    """Return the mode of what a path leads to; None where it leads to nothing that can be looked at."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # a ValueError is a null character in the name
        return None


class _Counted:
    """Items, and how many there have been."""

    def __init__(self, items: Iterable[Row]) -> None:
        self._items, self.number = items, 0

    def __iter__(self) -> Iterator[Row]:
        for item in self._items:
            self.number += 1
            yield item


def _skip_blank(file: io.BufferedReader) -> bytes:
    """Go to the first byte that is no space and no mark of byte order; return it, still to be read."""
    if file.peek(3)[:3] == codecs.BOM_UTF8:
        file.read(3)
    while (byte := file.peek(1)[:1]) and byte.isspace():
        file.read(1)
    return byte


def _line_rows(file: io.BufferedReader, path: Path) -> Iterator[Row]:
    """Yield a row for every line that is not blank."""
    for number, line in enumerate(lines_of(file, path), start=1):
        if line.strip():
            yield parse_line(line, f"{path}:{number}")


def _array_rows(file: io.BufferedReader, path: Path) -> Iterator[Row]:
    """Yield a row for every entry of a JSON array, of which no more than an entry is held."""
    for number, entry in enumerate(array_entries(file, path), start=1):
        yield parse_line(entry, f"{path}: entry {number}")


def _draw_from_parquet(path: Path, name: str, choose: Choose[int]) -> Drawn:
    num_rows, columns, _ = parquet.read_shape(path)
    if not num_rows:
        raise CalibrationError(f"calibration file {path} holds no documents")
    _require_columns(path, columns)
    rows = [
        parse_row(row, f"{path}: row {number + 1}")
        for number, row in parquet.read_rows(path, COLUMNS, choose(range(num_rows)))
    ]
    rows = _with_ignored(rows, columns)
    return Drawn(rows=rows, num_rows=num_rows, name=name, container="Parquet")


def _draw_from_data_set(path: Path, split: str | None, choose: Choose[int]) -> Drawn:
    """Draw from a data set that the library `datasets` loads: from the hub, or from a folder."""
    if split is None:
        raise CalibrationError(
            f"{path} is a folder; name a split of its data with {argument('calibration_split')}"
        )
    if not path.is_dir() and not HUB_NAME.fullmatch(str(path)):
        raise CalibrationError(
            f"{path} does not exist, and no data set of the hub has such a name; expected owner/name"
        )
    data_set, _, part = (str(path), "", "") if path.is_dir() else str(path).partition(":")
    extras.require("datasets", needed_by=f"the data set {path}")
    try:
        with output_to_stderr():
            from datasets import load_dataset

            found = load_dataset(data_set, part or None, split=split)
        columns = list(found.column_names)
        _require_columns(path, columns)
        numbers = choose(range(len(found)))
        kept = found.select_columns([name for name in columns if name in COLUMNS]).select(numbers)
        listed = [(number, dict(row)) for number, row in zip(numbers, kept, strict=True)]
    except CalibrationError:
        raise
    except Exception as error:  # the library raises many kinds, of files, of the network and of its own
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CalibrationError(
            visible(f"the data set {path}, split {split}, cannot be loaded: {reason}")
        ) from None
    if not listed:
        raise CalibrationError(f"the data set {path}, split {split}, holds no documents")
    rows = [
        parse_row(parquet.without_nulls(row), f"{path}, split {split}, row {number + 1}")
        for number, row in listed
    ]
    name = visible(f"{data_set}{f':{part}' if part else ''}, split {split}")
    return Drawn(rows=_with_ignored(rows, columns), num_rows=len(found), name=name, container="a data set")


def _require_columns(path: Path, columns: list[str]) -> None:
    """Raise CalibrationError unless a table has a column that documents can come from."""
    if not COLUMNS & set(columns):
        parse_row(dict.fromkeys(columns, ""), str(path))


def _with_ignored(rows: list[Row], columns: list[str]) -> list[Row]:
    """Return rows with the columns that were not even read among those that are ignored."""
    unread = frozenset(columns) - COLUMNS
    return [
        Row(where=row.where, document=row.document, form=row.form, ignored=row.ignored | unread)
        for row in rows
    ]
