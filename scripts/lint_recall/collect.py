"""Make manifests.json, the facts about the public manifests that sources.toml names.

`python scripts/lint_recall/collect.py CACHE` reads each manifest from CACHE/REPOSITORY/COMMIT/PATH, and
downloads what is not there. Texts stay in the cache. A rebuilt manifest must give the findings of its text.
"""

import argparse
import json
import tempfile
import tomllib
import urllib.request
from pathlib import Path

from facts import FACTS, Manifest, rebuild, reduce_text

from moe4.deploy.lint.checks.needs import Context
from moe4.deploy.lint.run import lint_files

SOURCES = Path(__file__).parent / "sources.toml"
ADDRESS = "https://raw.githubusercontent.com/{repository}/{commit}/{path}"
SECONDS = 30
NOT_COMPARED = ("not-read", "key-doubled")  # of objects that are not kept


def main() -> None:
    """Write the facts, and say which samples are not the same to the lint."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("cache", type=Path)
    cache = arguments.parse_args().cache
    samples = []
    for source in tomllib.loads(SOURCES.read_text(encoding="utf-8"))["manifest"]:
        file = bring(cache, source)
        documents = reduce_text(file.read_text(encoding="utf-8"))
        sample = {"id": f"{source['repository']}/{source['path']}", "commit": source["commit"]}
        samples.append(sample | {"faults": sorted(source.get("faults", {})), "documents": documents})
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder) / "rebuilt.yaml"
            again.write_text(rebuild(documents), encoding="utf-8")
            if (text := rules_of(file)) != (facts := rules_of(again)):
                print(f"{sample['id']}: differs in {sorted(text ^ facts)}")
    FACTS.write_text(as_lines(samples), encoding="utf-8")
    print(f"{FACTS}: {len(samples)} manifests")


def bring(cache: Path, source: Manifest) -> Path:
    """Return a manifest's file in the cache, downloaded if it is not there."""
    file: Path = cache / source["repository"] / source["commit"] / source["path"]
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(ADDRESS.format(**source), timeout=SECONDS) as answer:
            file.write_bytes(answer.read())
    return file


def rules_of(file: Path) -> set[tuple[str, str]]:
    """Return rule and level of each finding."""
    found = lint_files([file], Context(), None)
    return {(item.rule, item.level) for item in found if item.rule not in NOT_COMPARED}


def as_lines(samples: list[Manifest]) -> str:
    """Return the samples as JSON, one a line."""
    return "[\n" + ",\n".join(json.dumps(sample, separators=(",", ":")) for sample in samples) + "\n]\n"


if __name__ == "__main__":
    main()
