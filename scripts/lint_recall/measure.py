"""What of the harmful mutations of public manifests `moe4 lint` finds."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from facts import Manifest, rebuild
from mutations import MUTATIONS, Mutation, close_scripts, open_scripts

from moe4.deploy.lint.checks.needs import Context
from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.run import lint_files

Told = tuple[str, str, str, str]


@dataclass(kw_only=True, slots=True)
class Tally:
    """Of one mutation: in how many samples it applies, and in which it was not found."""

    applied: int = 0
    missed: list[str] = field(default_factory=list)


def lint(documents: list[Manifest], folder: Path) -> list[Finding]:
    """Return the errors and warnings of a manifest with these facts."""
    file = folder / "sample.yaml"
    file.write_text(rebuild(documents))
    return [item for item in lint_files([file], Context(), None) if item.level in ("error", "warning")]


def false_errors(sample: Manifest, folder: Path) -> list[Finding]:
    """Return the errors of a sample that are no fault of it."""
    return [
        item
        for item in lint(sample["documents"], folder)
        if item.level == "error" and item.rule not in sample["faults"]
    ]


def told(documents: list[Manifest], folder: Path) -> set[Told]:
    """Return the rule, path, reason and level of each finding."""
    return {(item.rule, item.path, item.why, item.level) for item in lint(documents, folder)}


def is_found(sample: Manifest, mutation: Mutation, before: set[Told], folder: Path) -> bool | None:
    """Say whether one of the mutation's rules says more of the mutated sample; None if it does not apply."""
    documents = copy.deepcopy(sample["documents"])
    open_scripts(documents)
    if not mutation.change(documents):
        return None
    close_scripts(documents)
    if documents == sample["documents"]:
        return None
    return any(item[0] in mutation.rules for item in told(documents, folder) - before)


def measure(
    samples: list[Manifest], folder: Path, mutations: Sequence[Mutation] = MUTATIONS
) -> dict[str, Tally]:
    """Return each mutation's tally."""
    tallies = {mutation.name: Tally() for mutation in mutations}
    for sample in samples:
        before = told(sample["documents"], folder)
        for mutation in mutations:
            found = is_found(sample, mutation, before, folder)
            if found is not None:
                tallies[mutation.name].applied += 1
                if not found:
                    tallies[mutation.name].missed.append(sample["id"])
    return tallies
