"""Public manifests: no error on those that work, and the harm that is done to them is found."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "scripts" / "lint_recall"
SAMPLES = 12  # of all, evenly spread; scripts/lint_recall/table.py takes them all


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


def test_at_least_sixty_manifests_and_fifty_mutations() -> None:
    from facts import load
    from mutations import MUTATIONS

    samples = load()
    assert len({sample["id"] for sample in samples}) == len(samples) >= 60
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 50


def test_no_false_error(tmp_path: Path) -> None:
    from facts import load
    from measure import false_errors

    found = {sample["id"]: [item.describe() for item in false_errors(sample, tmp_path)] for sample in load()}
    assert {name: errors for name, errors in found.items() if errors} == {}


def test_harm_is_found(tmp_path: Path) -> None:
    """A part of the measurement: some samples, every fifth mutation."""
    from facts import load
    from measure import measure
    from mutations import MUTATIONS

    samples = load()
    tallies = measure(samples[:: len(samples) // SAMPLES], tmp_path, MUTATIONS[::5])
    applied = sum(tally.applied for tally in tallies.values())
    missed = {name: tally.missed for name, tally in tallies.items() if tally.missed}
    assert applied > 40
    assert sum(map(len, missed.values())) <= 0.02 * applied, missed


def test_a_mutation_that_no_rule_looks_for_is_missed(tmp_path: Path) -> None:
    """The measurement can fail."""
    from facts import load
    from measure import measure
    from mutations import Mutation, give

    harmless = Mutation(name="harmless", field="none", rules=("option-unknown",), change=give("--seed=1"))
    tally = measure(load()[:8], tmp_path, [harmless])["harmless"]
    assert tally.applied == len(tally.missed) > 0
