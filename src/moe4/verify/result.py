"""What `moe4 verify` found."""

from dataclasses import asdict, dataclass

from moe4.checkpoint.release_folder import REPORT_NAME
from moe4.checkpoint.report_file import WorstMatrix
from moe4.escape import visible
from moe4.strict_json import JsonObject
from moe4.units import format_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightError:
    """A matrix beside the source's: |W - Q|^2 / |W|^2."""

    matrix: str
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """A release that was checked; `problems` is empty if nothing is wrong.

    num_files: as many the report lists. not_covered: files that are there and that it need not list.
    source_num_bytes: None if neither a report nor a source says it. worst: what lost the most by the report.
    worst_weight_errors: the same by comparison with the source; empty without one.
    """

    problems: list[str]
    warnings: list[str]
    num_tensors: int
    num_quantized: int
    num_bytes: int
    num_files: int
    not_covered: list[str]
    source_num_bytes: int | None
    worst: list[WorstMatrix]
    worst_weight_errors: list[WeightError]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> JsonObject:
        """Return plain JSON types, without a comparison that was not made."""
        found = {"ok": self.ok, **asdict(self), "worst": [entry.model_dump() for entry in self.worst]}
        if not self.worst_weight_errors:
            del found["worst_weight_errors"]
        return found

    def __str__(self) -> str:
        return describe(self)


def describe(result: Verification) -> str:
    """Return a result in a few lines."""
    lines = [f"wrong     {problem}" for problem in result.problems]
    lines += [f"warning   {warning}" for warning in result.warnings]
    size = f"size      {format_bytes(result.num_bytes)}"
    if result.source_num_bytes:
        share = result.num_bytes / result.source_num_bytes
        size += f", the source {format_bytes(result.source_num_bytes)} ({share:.1%})"
    lines.append(size)
    if result.num_files:
        lines.append(
            f"files     {result.num_files} listed in {REPORT_NAME}; "
            f"not covered: {', '.join(result.not_covered)}"
        )
    for entry in result.worst:
        lines.append(
            f"worst     {entry.matrix}: error {entry.error:.5f} (round to nearest {entry.rtn_error:.5f})"
        )
    for weight in result.worst_weight_errors:
        lines.append(f"weights   {weight.matrix}: {weight.error:.5f} of its squares lost")
    count = f"{result.num_tensors} tensors, {result.num_quantized} quantized matrices"
    lines.append(
        f"ok        {count}" if result.ok else f"failed    {len(result.problems)} problems in {count}"
    )
    return "\n".join(map(visible, lines))
