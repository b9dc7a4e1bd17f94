"""What a cell of the comparison is, in which order cells run, and where their results lie.

A cell is one method on one model, with one draw of calibration documents and about so many tokens of them.
Its result is DIR/cells/NAME.json; DIR/yardstick.json holds all of them as one list, so that one file can be
carried elsewhere. A cell that is in either is done.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Mean over 3,360 documents of the reference mixture, seeds 0 to 4, by k2-tiny's tokenizer, cut to 1,024.
DOCUMENT_TOKENS = 395
MERGED = "yardstick.json"

Record = dict[str, Any]
"""What a cell leaves: plain JSON types."""


class YardstickError(Exception):
    """Results that do not belong together, or an option that names nothing; one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """`model` is its folder's name; a method that needs no calibration has neither draw nor tokens."""

    model: str
    method: str
    draw: int | None = None
    tokens: int | None = None

    @property
    def name(self) -> str:
        draw = "" if self.draw is None else f".draw{self.draw}.{self.tokens}"
        return f"{self.model}.{self.method}{draw}"

    @property
    def num_sequences(self) -> int:
        """The documents that give about so many tokens; 0 for a method without calibration."""
        return 0 if self.tokens is None else max(1, round(self.tokens / DOCUMENT_TOKENS))


def order_cells(
    models: Sequence[str], methods: dict[str, bool], draws: Sequence[int], tokens: Sequence[int]
) -> list[Cell]:
    """Return the cells, the most important first: by tokens as given, then draw, model and method.

    methods: name -> whether it needs calibration. Those that do not come first, once a model.
    """
    fixed = [
        Cell(model=model, method=name)
        for model in models
        for name, is_calibrated in methods.items()
        if not is_calibrated
    ]
    return fixed + [
        Cell(model=model, method=name, draw=draw, tokens=number)
        for number in tokens
        for draw in draws
        for model in models
        for name, is_calibrated in methods.items()
        if is_calibrated
    ]


def cell_of(record: Record) -> Cell:
    return Cell(**record["cell"])


def result_path(results: Path, cell: Cell) -> Path:
    return results / "cells" / f"{cell.name}.json"


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(json.dumps(value) + "\n", encoding="utf-8")
    aside.replace(path)


def write_record(results: Path, cell: Cell, facts: Record) -> None:
    write_json(result_path(results, cell), {"cell": asdict(cell), **facts})


def load_records(folders: Iterable[Path]) -> dict[str, Record]:
    """Return the records of folders or merged files by their cells' names; of two, the first.

    A merged file may be compressed (`.gz`).

    Raises YardstickError if records do not belong together (`check_alike`).
    """
    records: dict[str, Record] = {}
    for folder in folders:
        merged = folder / MERGED if folder.is_dir() else folder
        found = _read(merged) if merged.is_file() else []
        found += map(_read, sorted(folder.glob("cells/*.json")))
        for record in found:
            records.setdefault(cell_of(record).name, record)
    check_alike(list(records.values()))
    return records


def _read(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def check_alike(records: Sequence[Record]) -> None:
    """Raises YardstickError unless models of one name are one model, and texts are the same for all."""
    seen: dict[tuple[Any, ...], tuple[str, str]] = {}
    for record in records:
        cell = cell_of(record)
        identities = {
            ("model", cell.model): record["model_sha256"],
            ("held-out text",): record["heldout"]["sha256"],
        }
        if record["calibration"]:
            key = ("calibration text", cell.draw, cell.tokens)
            identities[key] = record["calibration"]["sha256"]
        for key, digest in identities.items():
            name, other = seen.setdefault(key, (cell.name, digest))
            if other != digest:
                raise YardstickError(
                    f"{cell.name} and {name} do not share the {key[0]}: they cannot be paired"
                )


def digest_of_model(folder: Path) -> str:
    """Return a SHA-256 over a model's weights, config and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.safetensors"), folder / "config.json", folder / "tokenizer.json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Return a SHA-256 over plain JSON types."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
