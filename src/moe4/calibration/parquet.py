"""Rows of a Parquet file, read in a child process within bounds: a small file can hold gigabytes.

Columns of objects have every key in every row; those that a row had not are null there, so nulls are dropped.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from moe4 import extras
from moe4.bounded import Bounds, OutOfBoundsError, map_bounded
from moe4.errors import CalibrationError
from moe4.files.regular import open_regular

SIGNATURE = b"PAR1"
FIRST_SECONDS, SECONDS_PER_BYTE = 60.0, 1e-6
FIRST_BYTES, BYTES_PER_BYTE = 2 << 30, 8
BATCH_ROWS = 64


def read_shape(path: Path) -> tuple[int, list[str], list[int]]:
    """Return a file's rows, its columns' names, and how many rows each of its groups has."""
    [shape] = _in_child(path, lambda _: _shape(path), [0])
    return int(shape[0]), [str(name) for name in shape[1]], [int(count) for count in shape[2]]


def read_rows(path: Path, columns: Collection[str], wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield (number, row) for the numbers from 0 that are wanted, with these columns alone."""
    _, present, counts = read_shape(path)
    names = [name for name in present if name in columns]
    starts = [sum(counts[:group]) for group in range(len(counts))]
    chosen = [
        [number - start for number in wanted if start <= number < start + count]
        for start, count in zip(starts, counts, strict=True)
    ]
    groups = [group for group, numbers in enumerate(chosen) if numbers]
    found = _in_child(path, lambda group: _rows(path, group, names, chosen[group]), groups)
    for group, rows in zip(groups, found, strict=True):
        yield from zip((starts[group] + number for number in chosen[group]), rows, strict=True)


def _in_child(path: Path, function: Any, items: Sequence[int]) -> Iterator[Any]:
    extras.require("pyarrow", needed_by=f"{path}, a Parquet file,")
    with open_regular(path) as file:
        size = file.seek(0, 2)
    bounds = Bounds(
        seconds=FIRST_SECONDS + SECONDS_PER_BYTE * size, num_bytes=FIRST_BYTES + BYTES_PER_BYTE * size
    )
    try:
        yield from map_bounded(function, items, lambda _: bounds)
    except OutOfBoundsError as error:
        raise CalibrationError(f"{path}: reading it {error}; give a file with smaller rows") from None


def _shape(path: Path) -> tuple[int, list[str], list[int]]:
    with open_regular(path) as file:
        parquet = _open(path, file)
        groups = [parquet.metadata.row_group(n).num_rows for n in range(parquet.metadata.num_row_groups)]
        return sum(groups), list(parquet.schema_arrow.names), groups


def _rows(path: Path, group: int, columns: list[str], wanted: list[int]) -> list[Any]:
    """Return the rows of a group that are wanted, as JSON has them."""
    from pyarrow import ArrowException

    rows: list[Any] = []
    with open_regular(path) as file:
        parquet = _open(path, file)
        start, left = 0, set(wanted)
        try:
            batches = parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
            for batch in batches:
                places = [number - start for number in range(start, start + len(batch)) if number in left]
                rows += [without_nulls(row) for place in places for row in batch.slice(place, 1).to_pylist()]
                start += len(batch)
        except MemoryError:
            raise
        except (ArrowException, OSError, ValueError) as error:
            raise _damaged(path, error) from None
    if len(rows) != len(wanted):
        raise CalibrationError(f"{path} is damaged: row group {group + 1} has fewer rows than it says")
    return rows


def _open(path: Path, file: Any) -> Any:
    import pyarrow
    from pyarrow import parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the others' threads do not survive a fork
    try:
        return parquet.ParquetFile(file, pre_buffer=False)
    except MemoryError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CalibrationError:
    reason = str(error).strip().split("\n")[0]
    return CalibrationError(f"{path} cannot be read as Parquet: {reason}")


def without_nulls(value: Any) -> Any:
    """Return a value as JSON has it, without the keys that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
