"""Bring into the site what lies outside docs/: the README as its home page, results, recipes, examples.

Pages link to one another by their paths in the repository, so that the links work on a forge as well. This
hook of mkdocs (see mkdocs.yml) rewrites each such link to the page's place in the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"

# Files by their paths in the repository, and where the site has them.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "THIRD_PARTY_NOTICES.md": "third-party-notices.md",
    "LICENSE": "LICENSE.txt",
    "reference/README.md": "k2-tiny.md",
}
# The same for all files of a folder.
FOLDERS = {
    "benchmarks/results": "results",
    "examples": "examples",
    "recipes": "recipes",
    "reference/plots": "plots",
}

# A link's target: `](TARGET)` or `](TARGET#ANCHOR)`, and the same in the HTML of a picture.
LINK = re.compile(
    r'(?P<before>\]\(|(?:src|srcset|href)=")(?P<target>[^)"#:\s]+)(?P<after>#[^)"\s]*)?(?=[)"])'
)


def outside_files() -> dict[str, str]:
    """Map the path of each file outside docs/ to its path in the site."""
    found = dict(PLACES)
    for folder, place in FOLDERS.items():
        for path in sorted((ROOT / folder).iterdir()):
            if path.is_file():
                found[f"{folder}/{path.name}"] = f"{place}/{path.name}"
    return found


OUTSIDE = outside_files()
INSIDE = {place: path for path, place in OUTSIDE.items()}


def on_files(files: Files, config: Any) -> Files:
    """Add the files from outside docs/."""
    for path, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to files of the repository into links to their places in the site."""
    place = page.file.src_uri
    return rewrite(markdown, INSIDE.get(place, DOCS + place), place)


def rewrite(markdown: str, path: str, place: str) -> str:
    """Return a page's text with the site's links, given its path in the repository and in the site."""

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link["target"]))
        inside = OUTSIDE.get(target) or (target.removeprefix(DOCS) if target.startswith(DOCS) else None)
        if inside is None:
            return link[0]  # mkdocs reports it
        return link["before"] + posixpath.relpath(inside, posixpath.dirname(place)) + (link["after"] or "")

    return LINK.sub(replace, markdown)
