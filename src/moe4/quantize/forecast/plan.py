"""What `moe4 plan` finds: a typed value, plain JSON, and a few lines to read."""

from moe4 import extras
from moe4.escape import visible, visible_lines
from moe4.fingerprint import Pin
from moe4.schema import Own
from moe4.units import count_text, duration, format_bytes


class PlannedSource(Own):
    """The checkpoint that a run would read. hub: where it lies on the hub; None of a folder."""

    hub: Pin | None = None
    model_type: str | None
    has_weights: bool
    num_tensors: int
    num_bytes: int
    num_tensors_by_kind: dict[str, int]


class PlannedRelease(Own):
    """The release that a run would write. elements: by dtype."""

    group_size: int
    method: str
    num_shards: int
    num_tensors: int
    num_quantized: int
    num_bytes: int
    num_elements: int
    elements: dict[str, int]
    files_left_out: list[str]


class PlannedCalibration(Own):
    """The tokens of calibration; at most so many where `exact` is false.

    recognized: what the data were taken for. sample: the first document as it would be calibrated on.
    """

    num_tokens: int
    exact: bool
    recognized: str | None = None
    sample: str | None = None


class PlannedMemory(Own):
    """The bound on memory, in all and by phase, and what the machine has."""

    peak_bytes: int
    phases: dict[str, int]
    available_bytes: int


class PlannedDisk(Own):
    """The room that a run needs, and what there is."""

    needed_bytes: int
    free_bytes: int


class PlannedTime(Own):
    """How long a run would take, from one expert that was solved here."""

    seconds: float
    expert_seconds: float
    expert_tokens: int
    attention_seconds: float
    num_experts: int
    num_threads: int


class Plan(Own):
    """What a run would write, need and take. problems: every reason it would fail; `ok` if there is none.

    not_checked: what was not looked into because torch or transformers is not installed.
    """

    ok: bool
    problems: list[str]
    warnings: list[str]
    source: PlannedSource
    release: PlannedRelease
    calibration: PlannedCalibration
    memory: PlannedMemory
    disk: PlannedDisk
    not_checked: list[str]
    time: PlannedTime | None = None

    def __str__(self) -> str:
        return describe(self)


def describe(plan: Plan) -> str:
    """Return a plan in a few lines."""
    source, release, memory, disk = plan.source, plan.release, plan.memory, plan.disk
    kinds = " · ".join(f"{dtype} {count_text(count)}" for dtype, count in release.elements.items())
    counts = {kind: count for kind, count in source.num_tensors_by_kind.items() if count}
    by_kind = (
        "" if len(counts) < 2 else f" ({', '.join(f'{count} {kind}' for kind, count in counts.items())})"
    )
    lines = [
        f"source    {source.num_tensors} tensors{by_kind}, {format_bytes(source.num_bytes)}"
        + ("" if source.has_weights else ", from the config alone"),
        f"release   {release.num_tensors} tensors in {release.num_shards} shards, "
        f"{format_bytes(release.num_bytes)} ({release.num_bytes / max(1, source.num_bytes):.1%})",
        f"elements  {count_text(release.num_elements)}: {kinds}",
    ]
    kept = ", the source's own, unchanged" if release.method == "copy" else ""
    lines.append(f"groups    of {release.group_size} codes{kept}")
    if release.files_left_out:
        lines.append(f"left out  {', '.join(release.files_left_out)}")
    tokens = plan.calibration
    if tokens.num_tokens:
        lines.append(f"tokens    {tokens.num_tokens}" + ("" if tokens.exact else " at most"))
    if tokens.recognized:
        lines.append(f"text      {tokens.recognized.partition(': ')[2]}")
    lines.append(
        f"memory    {format_bytes(memory.peak_bytes)} at most; "
        f"the machine has {format_bytes(memory.available_bytes)}"
    )
    lines.append(f"disk      {format_bytes(disk.needed_bytes)}; {format_bytes(disk.free_bytes)} are free")
    if (time := plan.time) is not None:
        lines.append(
            f"time      {duration(time.seconds)}: {time.num_experts} experts of "
            f"{time.expert_seconds:.1f} s on {time.num_threads} threads, "
            f"{time.attention_seconds:.0f} s a layer for the rest"
        )
    if plan.not_checked:
        lines.append(f"unchecked {'; '.join(plan.not_checked)}: {extras.install('torch')}")
    lines += [f"warning   {warning}" for warning in plan.warnings]
    lines += [f"problem   {problem}" for problem in plan.problems]
    lines.append("ok        no problems found" if plan.ok else "failed    the run would fail")
    text = "\n".join(map(visible, lines))
    if tokens.sample:
        text += f"\n\nthe first document as it would be calibrated on:\n{visible_lines(tokens.sample)}"
    return text
