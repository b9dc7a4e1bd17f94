"""Measure all of it and write the table: `python scripts/lint_recall/table.py`, some minutes."""

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

`moe4 lint` was run on {samples} public manifests of vLLM from {repositories} repositories, as they are
and broken in {mutations} ways. The project keeps facts about the manifests, not their text: kinds,
images, options, resources, probes. `scripts/lint_recall/sources.toml` says where each one is and which
faults it has, and `collect.py` makes the facts from the texts. A manifest rebuilt from the facts gives
the same findings as its text.

- **Precision.** {clean} manifests have no fault that we know of; the lint reports {false} errors in them.
  The other {faulty} have faults (a moving tag, an API key in the file, several ranks with 64 MiB of
  `/dev/shm`, no GPUs), and the lint reports no other error in them.
- **Recall.** The mutations that are harmful where they apply were made {applied} times. The lint found
  {found}: **{share:.1f} %**. A mutation counts as found only if one of the rules meant for it speaks up.

No release was given, so rules about sizes took no part. Values that another file completes, as in a
`ServingRuntime` alone, are not judged and not counted.
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
