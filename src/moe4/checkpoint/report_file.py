"""A release's report as a file: its form, and its list of the release's files, which `moe4 verify` compares.

The list covers every file but the report itself. Not covered is what comes after: the model card, which is
meant to be edited, and the measured results in `proof/`. Hidden files are no part of a release.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from moe4.checkpoint.index import PROBE_NAME
from moe4.checkpoint.release_folder import REPORT_NAME
from moe4.checkpoint.side_files import CARD_NAME, shown
from moe4.errors import CheckpointError, UnsafePathError
from moe4.escape import visible
from moe4.files.durable import file_sha256
from moe4.files.own import OwnFile
from moe4.files.regular import require_inside
from moe4.fingerprint import Fingerprint, Hash, Pin
from moe4.recipe import Method
from moe4.schema import Growing
from moe4.units import format_bytes

MOST_HASHED = 16  # files at a time
PROOF_FOLDER = "proof"
TRAFFIC_KINDS = {
    "source_read": "of the source read",
    "release_written": "of the release written",
    "release_read_back": "of it read back for its checksum",
    "activations_read": "of activations read",
    "activations_written": "of activations written",
}
"""Bytes that a run reads and writes, by kind."""
NOT_COVERED = (REPORT_NAME, CARD_NAME, f"{PROOF_FOLDER}/")

Count = Annotated[int, Field(ge=0)]


class FileEntry(Growing):
    """What the report says of a file."""

    num_bytes: Count
    sha256: Hash


class ReportedRelease(Growing):
    """The release's files; reports from before there was a list of all of them have no `files`."""

    num_bytes: Annotated[int, Field(ge=1)]
    shards: dict[str, FileEntry]
    files: dict[str, FileEntry] | None = None
    not_covered: list[str] = Field(default_factory=list)


class ReportedSource(Growing):
    """What the release was made of."""

    hub: Pin | None = None
    model_type: str | None
    num_bytes: Annotated[int, Field(ge=1)]
    files_left_out: list[str] = Field(default_factory=list)
    tensors_left_out: dict[str, Count] = Field(default_factory=dict)
    quantized_again: dict[str, Count] = Field(default_factory=dict)
    """Matrices that were codes of few bits in the source already."""
    tensors: dict[str, str] = Field(default_factory=dict)


class ReportedCalibration(Growing):
    """The calibration data."""

    data: str
    num_sequences: Count
    num_tokens: Count


class ReportRecipe(Growing):
    """What readers use of the recipe; the page shows the rest of it too."""

    method: Method
    targets: list[str] = Field(default_factory=lambda: ["experts"])
    group_size: Literal[32, 64, 128]


class MatrixRecord(Growing):
    """What a matrix lost: relative errors, weighted by its Hessian."""

    method: str = ""
    error: float
    rtn_error: float
    fallback: str | None = None
    """Why it was rounded to nearest after all."""
    raised_damping: float | None = None


class ExpertRecord(Growing):
    """An expert of a layer; without calibration it has no number of tokens, and some have no gate."""

    num_tokens: Count | None
    gate: MatrixRecord | None = None
    up: MatrixRecord
    down: MatrixRecord

    def matrices(self) -> Iterator[tuple[str, MatrixRecord]]:
        """Yield (name, record) of each of its matrices."""
        for part, record in (("gate", self.gate), ("up", self.up), ("down", self.down)):
            if record is not None:
                yield f"{part}_proj", record


class LayerRecord(Growing):
    """What happened to a decoder layer."""

    layer: Count
    shard: str = ""
    experts: list[ExpertRecord]
    linears: dict[str, MatrixRecord]

    def matrices(self) -> Iterator[tuple[str, MatrixRecord]]:
        """Yield (name, record) of every quantized matrix."""
        for number, expert in enumerate(self.experts):
            for part, record in expert.matrices():
                yield f"layer {self.layer} expert {number} {part}", record
        for name, record in self.linears.items():
            yield f"layer {self.layer} {name}", record


class Fallback(Growing):
    """A matrix that was rounded to nearest after all."""

    matrix: str
    why: str


class WorstMatrix(Growing):
    """One of those that lost the most."""

    matrix: str
    error: float
    rtn_error: float


class ExpertTokens(Growing):
    """How calibration's tokens spread over the experts."""

    least: Count
    median: Count
    most: Count
    num_unreached: Count


class Summary(Growing):
    """Figures of the whole release."""

    num_matrices: Count
    mean_error: float
    mean_rtn_error: float
    fallbacks: list[Fallback]
    worst: list[WorstMatrix]
    expert_tokens: ExpertTokens | None = None


class Timing(Growing):
    """What it took."""

    seconds: float
    layer_seconds: list[float] = Field(default_factory=list)
    num_ranks: list[Count] = Field(default_factory=list)
    peak_memory_bytes: Count
    traffic_bytes: dict[str, Count] = Field(default_factory=dict)


class ReportedProbe(Growing):
    """The expected answers: how many there are, or why there are none."""

    missing: str | None = None
    num_sequences: Count | None = None
    num_tokens: Count | None = None

    @property
    def is_there(self) -> bool:
        """Whether the release has them."""
        return self.num_sequences is not None


class Tuning(Growing):
    """What `moe4 tune` did to the scales.

    kl_before, kl_after: from the source's answers, in nats a token of the documents held back.
    """

    data: str
    num_sequences: Count
    num_tokens: Count
    num_held_back: Count
    max_sequence_tokens: Count
    num_scales: Count
    num_steps: Count
    epochs: Count
    learning_rate: float
    batch_tokens: Count
    seed: Count
    kl_before: float
    kl_after: float
    recipe: Hash
    """Of these settings and the release that was tuned."""
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.num_scales:,} scales in {self.num_steps:,} steps on {self.num_tokens:,} tokens of "
            f"{self.data}: KL {self.kl_before:.3e} -> {self.kl_after:.3e} nats a token on "
            f"{self.num_held_back} documents held back"
        )


class Report(Growing):
    """`moe4-report.json` (docs/release-format.md). Reports of older versions lack some of it."""

    versions: dict[str, str]
    recipe: ReportRecipe
    fingerprint: Fingerprint | None = None
    source: ReportedSource
    calibration: ReportedCalibration | None
    release: ReportedRelease
    probe: ReportedProbe | None = None
    tuning: Tuning | None = None
    summary: Summary
    layers: list[LayerRecord]
    timing: Timing | None = None

    def __str__(self) -> str:
        return describe(self)

    def faults(self) -> Iterator[str]:
        """Yield what a page and a card could not say."""
        if "moe4" not in self.versions:
            yield "versions has no moe4"


REPORT = OwnFile(
    form=Report,
    error=CheckpointError,
    remedy="copy the release again, or quantize again",
    writer=("versions", "moe4"),
)


def read_report(folder: Path) -> Report:
    """Return a release's report. Raises CheckpointError with one line for one that is damaged."""
    return REPORT.read(folder / REPORT_NAME)


Listing = dict[str, FileEntry]
"""By file name."""


def list_file(path: Path) -> FileEntry:
    """Return what a list says of a file."""
    return FileEntry(num_bytes=path.stat().st_size, sha256=file_sha256(path))


def list_files(folder: Path, names: Iterable[str], coming: Mapping[str, bytes]) -> Listing:
    """Return the list of some files in a folder, and of some that will be written with these contents."""
    listing = {name: list_file(folder / name) for name in names}
    for name, data in coming.items():
        listing[name] = FileEntry(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return dict(sorted(listing.items()))


def compare_files(
    folder: Path, listing: Listing, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[str, str]]:
    """Yield (name, what is wrong with it): removed, changed, or added and not listed.

    Several files are hashed at a time; `on_bytes` hears the size of each when that is done.
    """

    def compare(name: str) -> str | None:
        if Path(name).name != name:
            return "is not a file name"
        problem = _compare_file(folder / name, listing[name])
        on_bytes(0 if problem else listing[name].num_bytes)
        return problem

    with ThreadPoolExecutor(max(1, min(MOST_HASHED, len(os.sched_getaffinity(0))))) as threads:
        try:
            for name, problem in zip(listing, threads.map(compare, listing), strict=True):
                if problem is not None:
                    yield name, problem
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    for path in sorted(folder.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if path.name.startswith(".") or name in listing:
            continue
        if name not in NOT_COVERED:
            yield shown(name), f"was added: {REPORT_NAME} does not list it"
        for part in [path, *(sorted(path.rglob("*")) if name == f"{PROOF_FOLDER}/" else ())]:
            problem = _leads_out(part, folder)
            if problem is None and not part.is_file() and not part.is_dir():
                problem = "is not a file"
            if problem is not None:
                yield shown(str(part.relative_to(folder))), problem


def _compare_file(path: Path, entry: FileEntry) -> str | None:
    problem = _leads_out(path, path.parent)
    if problem is not None:
        return problem
    if not path.is_file():
        return "is not a file" if path.exists() else "is missing"
    if path.stat().st_size == entry.num_bytes and file_sha256(path) == entry.sha256:
        return None
    return f"is not the file {REPORT_NAME} describes: its SHA-256 differs"


def _leads_out(path: Path, folder: Path) -> str | None:
    try:
        require_inside(path, folder)
    except UnsafePathError as error:
        return str(error).removeprefix(f"{path} ")
    return None


def describe(report: Report) -> str:
    """Return a release's summary in a few lines."""
    summary, before, after = report.summary, report.source.num_bytes, report.release.num_bytes
    lines = [f"left out  {count} {name}" for name, count in report.source.tensors_left_out.items()]
    if again := sum(report.source.quantized_again.values()):
        lines.append(f"again     {again} matrices were codes already; errors are against the source's own")
    if report.recipe.method == "copy":
        lines.append("codes     the source's own, unchanged")
    lines += [
        f"size      {format_bytes(before)} -> {format_bytes(after)} ({after / before:.1%})",
        f"error     {summary.mean_error:.5f} mean over {summary.num_matrices} matrices, "
        f"weighted by the Hessian (round to nearest {summary.mean_rtn_error:.5f})",
        f"fallbacks {len(summary.fallbacks)}",
    ]
    if (used := report.calibration) is not None:
        lines.append(
            f"text      {used.num_tokens:,} tokens of {used.num_sequences:,} documents from {used.data}"
        )
    if (tuned := report.tuning) is not None:
        lines.append(f"tuned     {tuned}; the errors are from before")
    if (tokens := summary.expert_tokens) is not None:
        lines.append(
            f"tokens    {tokens.least} to {tokens.most} an expert, median {tokens.median}, "
            f"{tokens.num_unreached} experts unreached"
        )
    if report.probe is not None and report.probe.is_there:
        lines.append(f"probe     {report.probe.num_sequences} sequences with their expected answers")
    elif report.probe is not None:
        lines.append(f"warning   {explain_missing(report.probe.missing)}")
    if (timing := report.timing) is not None:
        memory = format_bytes(timing.peak_memory_bytes)
        lines.append(f"time      {timing.seconds:.1f} s, at most {memory} of memory")
        moved = [
            f"{format_bytes(timing.traffic_bytes[kind])} {text}"
            for kind, text in TRAFFIC_KINDS.items()
            if kind in timing.traffic_bytes
        ]
        lines += [f"traffic   {', '.join(moved)}"] if moved else []
    return "\n".join(map(visible, lines))


def explain_missing(reason: str | None) -> str:
    """Return why a release gets no expected answers, and how to make them."""
    return f"the release gets no {PROBE_NAME}: {reason}; moe4 probe RELEASE can make it later"
