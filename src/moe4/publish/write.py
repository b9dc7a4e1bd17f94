"""Files that appear whole or not at all."""

from pathlib import Path

from moe4.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a text file, with the folder it lies in. Raises OutputError."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
