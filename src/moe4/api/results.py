"""What the functions return where no layer below has a type for it: attributes, JSON, and lines to read.

`str(result)` is what the command prints, `result.as_dict()` what it prints with `--json`.
"""

from typing import Any, Self

from pydantic import Field, PrivateAttr

from moe4.checkpoint.report_file import WorstMatrix
from moe4.errors import Moe4Error
from moe4.evaluate.result_files import ComparisonFile, ToolcheckFile, to_json
from moe4.schema import Own, parse


class Result(Own):
    """A typed view of an operation's JSON."""

    _document: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """Return the result that a document of ours holds."""
        result = parse(cls, document, cls.__name__, Moe4Error)
        result._document = document
        return result

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return self._document


class PlannedSource(Own):
    """The checkpoint that a run would read."""

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


class Plan(Result):
    """What a run would write, need and take. problems: every reason it would fail; `ok` if there is none."""

    ok: bool
    problems: list[str]
    warnings: list[str]
    source: PlannedSource
    release: PlannedRelease
    calibration: PlannedCalibration
    memory: PlannedMemory
    disk: PlannedDisk
    time: PlannedTime | None = None

    def __str__(self) -> str:
        from moe4.quantize.forecast.forecast import describe

        return describe(self._document)


class MatrixError(Own):
    """What a matrix lost of the source's weights, as a share of their squares."""

    matrix: str
    error: float


class Verification(Result):
    """What the check of a release found. problems: everything that is wrong; `ok` if there is nothing."""

    ok: bool
    problems: list[str]
    warnings: list[str]
    num_tensors: int
    num_quantized: int
    num_bytes: int
    num_files: int
    not_covered: list[str]
    source_num_bytes: int | None
    worst: list[WorstMatrix]
    worst_weight_errors: list[MatrixError] = Field(default_factory=list)

    def __str__(self) -> str:
        from moe4.verify.checks import describe

        return describe(self._document)


class ExpertReach(Own):
    """How many (layer, expert) pairs there are, and how many no token of the sequences goes to."""

    num_pairs: int
    num_unreached: int


class ProbeResult(Result):
    """The expected answers that were written, in figures. output: their file."""

    num_sequences: int
    kinds: dict[str, int]
    num_tokens: int
    shortest: int
    longest: int
    experts: ExpertReach
    median_likeliest_logprob: float
    remarks: list[str]
    num_same_as_source: int | None = None
    output: str

    @property
    def ok(self) -> bool:
        """They were written."""
        return True

    def __str__(self) -> str:
        from moe4.probe.make import describe

        return f"{describe(self._document)}\nwritten   {self.output}"


class AnswerDivergence(Own):
    """KL divergence of a server's answers from the expected ones, in nats."""

    mean: float
    worst: float


class AnswerCheck(Result):
    """The verdict on a server: whether it computes what the release holds.

    groups: figures of each kind of question, beside their bounds.
    """

    url: str
    model: str
    ok: bool
    groups: list[dict[str, Any]]
    wrong_tokens: int
    kl: AnswerDivergence
    worst_sequence: int
    num_sequences: int
    num_asked: int
    num_decoded: int

    def __str__(self) -> str:
        from moe4.probe.ask import describe

        return describe(self._document)


class LayerLoad(Own):
    """Tokens by expert of a layer."""

    layer: int
    least: int
    median: int
    most: int
    num_cold: int
    tokens: list[int]


class ColdExpert(Own):
    """An expert that few tokens go to."""

    layer: int
    expert: int
    num_tokens: int


class CoverageResult(Result):
    """Which experts calibration's tokens reach. chosen, overlap: there if they were asked for."""

    num_documents: int
    num_tokens: int
    cold_tokens: int
    even_load: float
    layers: list[LayerLoad]
    num_cold: int
    cold: list[ColdExpert]
    num_unreached: int
    documents_for_the_cold: list[dict[str, Any]]
    chosen: dict[str, Any] | None = None
    overlap: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether calibration and evaluation share no text; true where that was not asked."""
        return not (self.overlap and self.overlap["num_overlapping"])

    def __str__(self) -> str:
        from moe4.evaluate.coverage.coverage import describe
        from moe4.evaluate.coverage.overlap import describe_overlap

        overlap = "" if self.overlap is None else f"\n{describe_overlap(self.overlap)}"
        return describe(self._document) + overlap


class ComparisonResult(ComparisonFile):
    """How far a release's predictions are from its source's, and where that begins."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return to_json(self)

    def __str__(self) -> str:
        from moe4.evaluate.comparison.compare import describe

        return describe(self)


class ToolcheckResult(ToolcheckFile):
    """How a server calls tools, and where it is not as it should be."""

    @property
    def failures(self) -> list[str]:
        """What missed its threshold."""
        from moe4.evaluate.toolcheck.summary import failed_checks

        return failed_checks(self)

    @property
    def ok(self) -> bool:
        """Whether every threshold was reached."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return to_json(self)

    def __str__(self) -> str:
        from moe4.evaluate.toolcheck.summary import describe

        return describe(self)
