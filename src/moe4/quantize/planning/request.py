"""What a run is asked for, and where its release may lie."""

from dataclasses import dataclass
from pathlib import Path

from moe4.errors import OutputError
from moe4.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for."""

    source: Path
    out: Path
    recipe: Recipe
    calibration: Path | None = None
    split: str | None = None
    """Of the calibration data, where they are a data set."""
    show_sample: bool = False
    resume: bool = False
    device: str = "cpu"
    trust_remote_code: bool = False
    allow_extra: bool = False


def check_folders(source: Path, out: Path) -> None:
    """Raise OutputError if a release in `out` would lie in the source."""
    inside = source.resolve()
    if inside == out.resolve() or inside in out.resolve().parents:
        raise OutputError(f"{out} is inside the source folder {source}; choose a folder outside it")
