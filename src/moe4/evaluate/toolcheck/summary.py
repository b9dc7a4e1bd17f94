"""Shares with their intervals, thresholds, and how two endpoints agree."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe4.arguments import argument
from moe4.errors import EvaluationError
from moe4.escape import visible
from moe4.evaluate.result_files import Agreement, EndpointResult, Fault, Measure, ToolcheckFile
from moe4.evaluate.statistics import f1_interval, mcnemar, wilson
from moe4.evaluate.toolcheck.checks import Findings, same_calls
from moe4.evaluate.toolcheck.client import Reply

# What a deployment must reach. 0.80 is the K2 Vendor Verifier's bar for Kimi-K2-Instruct-0905; usage and text
# without markers are matters of the server's code, which either has them right or has not. `stream_equal`
# leaves room for answers that turn on a tie between two tokens, which batching decides.
THRESHOLDS = {
    "tool_call_f1": 0.80,
    "schema_accuracy": 0.95,
    "finish_reason_consistent": 1.0,
    "no_markers": 1.0,
    "usage_present": 1.0,
    "stream_equal": 0.95,
    "truncated_safe": 1.0,
    "empty_arguments": 1.0,
    "answered": 1.0,
}
# Order and meaning of all measures.
MEASURES = {
    "answered": "requests answered",
    "tool_call_f1": "decision to call, F1 against the reference",
    "schema_accuracy": "calls whose arguments fit their schema",
    "calls_exact": "calls exactly as expected",
    "finish_reason_consistent": "finish_reason fits the answer",
    "id_form": "ids of the form functions.name:idx",
    "id_counts": "ids that go on counting",
    "no_markers": "no marker text leaks",
    "usage_present": "usage present and adding up",
    "stream_equal": "streamed answer equals the whole one",
    "truncated_safe": "cut-off calls say length and cannot be executed",
    "empty_arguments": "calls without arguments have {}",
}
FIELDS = {
    "schema_accuracy": "schema",
    "calls_exact": "calls_exact",
    "finish_reason_consistent": "finish_consistent",
    "id_form": "id_form",
    "id_counts": "id_counts",
    "no_markers": "no_markers",
    "usage_present": "usage",
    "stream_equal": "stream_equal",
    "truncated_safe": "truncated_safe",
    "empty_arguments": "empty_arguments",
}


# Requests with faults: those that a result keeps, and those that its text shows.
MOST_KEPT = 50
MOST_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One request at one endpoint."""

    name: str
    expected_call: bool | None
    whole: Reply
    findings: Findings | None
    """None where the request was not answered."""


def parse_thresholds(texts: Sequence[str]) -> dict[str, float]:
    """Return the thresholds with what `--threshold NAME=SHARE` changes. Raises EvaluationError."""
    thresholds = dict(THRESHOLDS)
    for text in texts:
        name, _, value = text.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if name not in MEASURES or not 0 <= share <= 1:
            raise EvaluationError(
                f"{argument('thresholds', text)}: expected NAME=SHARE with a share from 0 to 1 and a name of "
                f"{', '.join(MEASURES)}"
            )
        thresholds[name] = share
    return thresholds


def summarize_endpoint(
    model: str, outcomes: Sequence[Outcome], thresholds: dict[str, float]
) -> EndpointResult:
    """Return every measure of an endpoint: value, interval, counts, threshold, whether it is reached."""
    found = [outcome.findings for outcome in outcomes if outcome.findings is not None]
    measures: dict[str, Measure | None] = {"answered": _share(len(found), len(outcomes))}
    decided = [
        (outcome.expected_call, outcome.findings.called)
        for outcome in outcomes
        if outcome.findings is not None and outcome.expected_call is not None
    ]
    measures["tool_call_f1"] = f1(decided) if decided else None
    for name, field in FIELDS.items():
        values = [value for value in (getattr(findings, field) for findings in found) if value is not None]
        measures[name] = _share(sum(values), len(values)) if values else None
    for name, threshold in thresholds.items():
        measure = measures.get(name)
        if measure is not None:
            judged = {"threshold": threshold, "ok": measure.value >= threshold}
            measures[name] = measure.model_copy(update=judged)
    return EndpointResult(
        model=visible(model),
        num_requests=len(outcomes),
        measures={name: measures[name] for name in MEASURES},
        num_calls=sum(findings.called for findings in found),
        faults=_faults(outcomes),
    )


def f1(decisions: Sequence[tuple[bool, bool]]) -> Measure:
    """Return F1 of (expected, found) decisions, as the K2 Vendor Verifier counts them, and its interval."""
    both = sum(expected and found for expected, found in decisions)
    only_found = sum(found and not expected for expected, found in decisions)
    only_expected = sum(expected and not found for expected, found in decisions)
    neither = len(decisions) - both - only_found - only_expected
    interval = f1_interval(both, only_found, only_expected, neither)
    called = 2 * both + only_found + only_expected
    return Measure(
        value=2 * both / called if called else 1.0,
        interval=interval.as_list(),
        num=len(decisions),
        true_positives=both,
        false_positives=only_found,
        false_negatives=only_expected,
        true_negatives=neither,
    )


def compare_endpoints(release: Sequence[Outcome], baseline: Sequence[Outcome]) -> Agreement:
    """Return how often two endpoints decide, finish and call alike, on what both answered."""
    pairs = [
        (new, old, new.findings, old.findings)
        for new, old in zip(release, baseline, strict=True)
        if new.findings is not None and old.findings is not None
    ]
    if not pairs:
        return Agreement(num=0)
    right = [
        (old_found.calls_exact, new_found.calls_exact)
        for _, _, new_found, old_found in pairs
        if new_found.calls_exact is not None and old_found.calls_exact is not None
    ]
    gained, lost = sum(b and not a for a, b in right), sum(a and not b for a, b in right)
    return Agreement(
        num=len(pairs),
        decision_agreement=_share(sum(new.called == old.called for _, _, new, old in pairs), len(pairs)),
        decision_f1=f1([(old.called, new.called) for _, _, new, old in pairs]),
        finish_reason_agreement=_share(
            sum(new.whole.finish_reason == old.whole.finish_reason for new, old, _, _ in pairs), len(pairs)
        ),
        same_calls=_share(sum(same_calls(new.whole, old.whole) for new, old, _, _ in pairs), len(pairs)),
        exact_gained=gained,
        exact_lost=lost,
        exact_mcnemar_p=mcnemar(gained, lost),
    )


def failed_checks(result: ToolcheckFile) -> list[str]:
    """Return the measures of the release's endpoint that miss their threshold."""
    measures = result.release.measures
    return [name for name, measure in measures.items() if measure is not None and measure.is_missed]


def describe(result: ToolcheckFile) -> str:
    """Return the result as a table, with what was wrong in the release's answers below it."""
    sides = {"baseline": result.baseline, "release": result.release}
    columns = {name: side for name, side in sides.items() if side is not None}
    lines = [["check", *columns, "at least"]]
    for name, text in MEASURES.items():
        cells = [_cell(side.measures.get(name)) for side in columns.values()]
        measure = result.release.measures.get(name)
        bar = f"{100 * measure.threshold:.0f} %" if measure and measure.threshold is not None else ""
        missed = " (missed)" if measure and measure.is_missed else ""
        lines.append([text, *cells, bar + missed])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    agreement = result.agreement
    if agreement and agreement.num:
        rows.append(
            f"baseline and release agree on whether to call in {_cell(agreement.decision_agreement)}, "
            f"make the same calls in {_cell(agreement.same_calls)}; of the exact answers "
            f"{agreement.exact_lost} were lost and {agreement.exact_gained} gained "
            f"(McNemar p = {agreement.exact_mcnemar_p:.2g})"
        )
    faults = result.release.faults_found
    rows += [
        f"request {fault.request + 1}, {fault.name}: {'; '.join(fault.notes)}"
        for fault in faults[:MOST_SHOWN]
    ]
    if len(faults) > MOST_SHOWN:
        rows.append(f"more requests had faults; the result as JSON has the first {MOST_KEPT}")
    return "\n".join(rows)


def _share(successes: int, total: int) -> Measure:
    return Measure(
        value=successes / total if total else 0.0,
        interval=wilson(successes, total).as_list(),
        num=total,
        successes=successes,
    )


def _faults(outcomes: Sequence[Outcome]) -> list[Fault]:
    faults: list[Fault] = []
    for place, outcome in enumerate(outcomes):
        findings = outcome.findings
        notes = [f"not answered: {outcome.whole.error}"] if findings is None else list(findings.notes)
        if findings is not None and outcome.expected_call not in (None, findings.called):
            notes.append("a call was expected" if outcome.expected_call else "no call was expected")
        if notes:
            faults.append(Fault(request=place, name=outcome.name, notes=[visible(note) for note in notes]))
    return faults[:MOST_KEPT]


def _cell(measure: Measure | None) -> str:
    if measure is None:
        return "-"
    low, high = measure.interval
    return f"{100 * measure.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {measure.num}"
