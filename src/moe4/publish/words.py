"""What the statistics of a comparison say, in plain words."""

import math

from moe4.evaluate.result_files import MeasureName, PlantedFault, PowerFile, TaskChange, TaskResult
from moe4.evaluate.statistics import LEVEL, POWER

CHANCES = f"{POWER:.0%}".replace("%", " %")
CONFIDENCE = f"{LEVEL:.0%}".replace("%", " %")
MEASURES: dict[MeasureName, str] = {
    "verify": "verify --source",
    "probe": "expected answers",
    "kl": "KL divergence",
    "top1": "likeliest token",
    "experts": "expert's error",
}
"""What measures a fault that is planted."""


def points(share: float) -> str:
    """Return a difference of shares: "0.39 points"."""
    return f"{100 * share:.2f} points"


def smallest_loss(change: TaskChange | None) -> str | None:
    """Return the smallest loss that the comparison would have noticed, if it is known: "0.39 points"."""
    if change is None or change.detectable_difference is None:
        return None
    return points(change.detectable_difference)


def sentences(result: TaskResult) -> list[str]:
    """Return what a task's comparison says: what changed, whether it is chance, what would have been seen."""
    change = result.change
    if change is None:
        return []
    found = []
    flips = change.gained + change.lost
    if flips:
        found.append(
            f"Of {result.num_questions:,} answers, {change.lost:,} became worse and {change.gained:,} better."
        )
    else:
        found.append(f"Each of {result.num_questions:,} answers has the same score before and after.")
    p_value = "" if change.mcnemar_p is None else f" (McNemar's exact test: p = {change.mcnemar_p:.2g})"
    if change.within_noise and flips:
        found.append(f"Two equally good models would often differ this much by chance{p_value}.")
    elif not change.within_noise:
        direction = "better" if change.difference > 0 else "worse"
        found.append(
            f"The release is {direction} by {points(abs(change.difference))}, more than chance "
            f"explains{p_value}."
        )
    loss = smallest_loss(change)
    if loss is not None:
        found.append(
            f"Had the release lost {loss} or more, this comparison would have shown it with a probability of "
            f"{CHANCES} or more, at {CONFIDENCE} confidence."
        )
    return found


def power_rows(power: PowerFile) -> list[tuple[str, dict[MeasureName, str]]]:
    """Return each planted fault and a cell for every measure, in the order of MEASURES."""
    return [
        (fault.title, {name: noticed_words(fault, name) for name in MEASURES})
        for fault in power.faults_planted
    ]


def noticed_words(fault: PlantedFault, measure: MeasureName) -> str:
    """Return whether a measure noticed a planted fault, or from which size on: "from x 1.05"."""
    found = fault.measures.get(measure)
    if found is None:
        return "not tried"
    if fault.unit is None:
        return "yes" if found.noticed else "no"
    return "at no size tried" if found.smallest is None else f"from {_size(fault, found.smallest)}"


def figures(fault: PlantedFault, measure: MeasureName) -> str:
    """Return a measure's value beside its limit: "0.0021, limit 0.0017, at x 1.05"."""
    found = fault.measures[measure]
    value = "NaN" if math.isnan(found.value) else f"{found.value:.4g}"
    text = f"{value}, limit {found.limit:.4g}"
    return text if fault.size is None else f"{text}, at {_size(fault, fault.size)}"


def _size(fault: PlantedFault, size: float) -> str:
    if fault.unit == "factor":
        return f"x {1 + size:.4g}"
    return f"{size:.0f} expert{'' if size == 1 else 's'}"
