"""Print a release's notes from CHANGELOG.md: `python scripts/release_notes.py v0.1.0`.

Fails where the tag is not the version in src/moe4/__init__.py, and where the changelog does not have that
version or calls it unreleased.
"""

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def notes(tag: str, version: str, changelog: str) -> str:
    """Return the section of the changelog. Raises SystemExit with what to do."""
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, but src/moe4/__init__.py says {version}: tag v{version}")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for section in sections:
        title, _, text = section.partition("\n")
        if title.split()[0] == version:
            if "unreleased" in title:
                raise SystemExit(f"CHANGELOG.md calls {version} unreleased: give it a date")
            return text.strip() + "\n"
    raise SystemExit(f"CHANGELOG.md has no section {version}: write one")


def main() -> None:
    """Print the notes of the tag that is given."""
    (tag,) = sys.argv[1:]
    source = (REPOSITORY / "src" / "moe4" / "__init__.py").read_text()
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert version is not None
    print(notes(tag, version[1], (REPOSITORY / "CHANGELOG.md").read_text()), end="")


if __name__ == "__main__":
    main()
