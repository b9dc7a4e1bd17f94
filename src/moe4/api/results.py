"""What the functions return where no layer below has a type for it: attributes, JSON, and lines to read.

`str(result)` is what the command prints, `result.as_dict()` what it prints with `--json`.
"""

from typing import Any, Self

from pydantic import PrivateAttr

from moe4.errors import Moe4Error
from moe4.evaluate.result_files import ComparisonFile, ToolcheckFile, to_json
from moe4.schema import Own, parse


class Result(Own):
    """A typed view of an operation's JSON."""

    _document: dict[str, Any] = PrivateAttr(default_factory=dict)
    _text: str = PrivateAttr(default="")

    @classmethod
    def of(cls, document: dict[str, Any], text: str) -> Self:
        """Return the result that a document of ours holds, and that reads like this."""
        result = parse(cls, document, cls.__name__, Moe4Error)
        result._document, result._text = document, text
        return result

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return self._document

    def __str__(self) -> str:
        return self._text


class HubPin(Own):
    """A repository on the hub, and the commit that its revision was."""

    repository: str
    revision: str
    commit: str


class PlannedSource(Own):
    """The checkpoint that a run would read. hub: where it is on the hub; None of a folder."""

    hub: HubPin | None = None
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
