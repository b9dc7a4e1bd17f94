"""What a run is asked for, and where its release may lie."""

from dataclasses import dataclass
from pathlib import Path

from moe4.errors import OutputError
from moe4.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for.

    source: a folder, or the id of a repository on the hub, at `revision`. stream: do not download its shards
    before they are needed, and drop them after.
    """

    source: Path | str
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
    family_as_is: bool = False
    """Try a family that is not listed."""
    revision: str | None = None
    stream: bool = False


def check_folders(source: Path | str, out: Path) -> None:
    """Raise OutputError if a release in `out` would lie in the source's folder."""
    inside = Path(source).resolve()
    if not inside.exists():  # it may lie on the hub
        return
    if inside == out.resolve() or inside in out.resolve().parents:
        raise OutputError(f"{out} is inside the source folder {source}; choose a folder outside it")
