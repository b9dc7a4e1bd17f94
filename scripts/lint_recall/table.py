"""Measure recall and precision and write the page: `python scripts/lint_recall/table.py`, some minutes."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from facts import Manifest, load
from measure import Tally, false_errors, measure
from mutations import MUTATIONS

PAGE = Path(__file__).parents[2] / "docs" / "lint-recall.md"
HEAD = """\
# What the lint finds

<!-- Written by scripts/lint_recall/table.py; do not edit. -->

We ran `moe4 lint` on {samples} public manifests of vLLM from {repositories} repositories, first
unchanged, then broken in {mutations} ways. The project keeps facts about the manifests, not their text:
kinds, images, options, resources, probes. `scripts/lint_recall/sources.toml` lists where each manifest
comes from and which faults it has; `collect.py` extracts the facts from the text. A manifest rebuilt
from its facts gives the same findings as the original.

- **Precision.** {clean} manifests have no known fault; the lint reports {false} errors in them. The
  other {faulty} have faults (a moving tag, an API key in the file, several ranks with 64 MiB of
  `/dev/shm`, no GPUs); the lint reports no other errors in them.
- **Recall.** We applied each mutation wherever it does harm, {applied} times in all. The lint found
  {found}: **{share:.1f} %**. A mutation counts as found only if a rule meant for it reports it.

The lint was given no release, so its rules about sizes did not run. Values that another file supplies,
as with a `ServingRuntime` on its own, are neither checked nor counted.
"""


def main() -> int:
    """Write the page; 1 if the recall is below 98 % or an error is false."""
    samples = load()
    with tempfile.TemporaryDirectory() as folder:
        false = sum(len(false_errors(sample, Path(folder))) for sample in samples)
        tallies = measure(samples, Path(folder))
    applied = sum(tally.applied for tally in tallies.values())
    found = applied - sum(len(tally.missed) for tally in tallies.values())
    repositories = {"/".join(sample["id"].split("/")[:2]) for sample in samples}
    faulty = sum(bool(sample["faults"]) for sample in samples)
    head = HEAD.format(
        samples=len(samples),
        repositories=len(repositories),
        mutations=len(MUTATIONS),
        clean=len(samples) - faulty,
        faulty=faulty,
        false=false or "no",
        applied=f"{applied:,}",
        found=f"{found:,}",
        share=100 * found / applied,
    )
    PAGE.write_text(
        "\n".join([head, *kinds_table(samples), "", *mutations_table(tallies), ""]), encoding="utf-8"
    )
    print(f"{PAGE}: {found} of {applied} found, {false} false errors")
    for name, tally in tallies.items():
        for sample in tally.missed:
            print(f"missed: {name}: {sample}")
    return int(bool(false) or found < 0.98 * applied)


def kinds_table(samples: list[Manifest]) -> list[str]:
    """Return how many manifests are of each kind."""
    kinds = Counter(
        kind
        for sample in samples
        for kind in {str(item.get("kind", "compose")) for item in sample["documents"]}
    )
    lines = ["| kind | manifests |", "| --- | ---: |"]
    return lines + [f"| {kind} | {count} |" for kind, count in kinds.most_common()]


def mutations_table(tallies: dict[str, Tally]) -> list[str]:
    """Return how often each mutation was made and found."""
    lines = ["| what | mutation | made | found |", "| --- | --- | ---: | ---: |"]
    for mutation in sorted(MUTATIONS, key=lambda item: item.field):
        tally = tallies[mutation.name]
        found = tally.applied - len(tally.missed)
        lines.append(f"| {mutation.field} | {mutation.name} | {tally.applied} | {found} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
