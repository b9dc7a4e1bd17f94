"""A release's measured results: its quantization report, and what `moe4 prove` wrote beside it."""

from dataclasses import dataclass
from pathlib import Path

from moe4.arguments import argument
from moe4.checkpoint.index import CONFIG_NAME, read_config
from moe4.checkpoint.release_folder import REPORT_NAME
from moe4.checkpoint.report_file import PROOF_FOLDER, Report, read_report
from moe4.config import ModelConfig
from moe4.errors import MissingFileError
from moe4.evaluate.result_files import (
    COMPARISON,
    EVALUATION,
    POWER,
    PROBE,
    TOOLCHECK,
    ComparisonFile,
    EvaluationFile,
    PowerFile,
    ProbeFile,
    Result,
    Run,
    ToolcheckFile,
    read_result,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """A release and what was measured of it; None for what was not."""

    folder: Path
    config: ModelConfig
    report: Report
    evaluation: EvaluationFile | None
    comparison: ComparisonFile | None
    toolcheck: ToolcheckFile | None
    probe: ProbeFile | None
    power: PowerFile | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def source_name(self) -> str | None:
        """The name of the source's folder, if a result tells it; a whole path is nobody else's business."""
        path = (self.evaluation and self.evaluation.baseline) or (self.comparison and self.comparison.source)
        return Path(path).name or None if path else None

    @property
    def runs(self) -> list[Run]:
        """When and how the results were measured, the latest last."""
        parts = (self.evaluation, self.comparison, self.toolcheck, self.probe)
        return sorted((part.run for part in parts if part and part.run), key=lambda run: run.date)


def read_proof(out: Path, proof: Path | None = None) -> Proof:
    """Read a release's results, from `proof` or OUT/proof.

    Raises CheckpointError's children, or EvaluationError for a result that is not as its file has to be.
    """
    for name in (CONFIG_NAME, REPORT_NAME):
        if not (out / name).is_file():
            raise MissingFileError(f"{out} is not a release of moe4: it has no {name}")
    folder = proof or out / PROOF_FOLDER
    if proof is not None and not proof.is_dir():
        raise MissingFileError(f"{argument('proof', proof)} is not a folder")
    return Proof(
        folder=out,
        config=read_config(out),
        report=read_report(out),
        evaluation=_read(folder / EVALUATION, EvaluationFile),
        comparison=_read(folder / COMPARISON, ComparisonFile),
        toolcheck=_read(folder / TOOLCHECK, ToolcheckFile),
        probe=_read(folder / PROBE, ProbeFile),
        power=_read(folder / POWER, PowerFile),
    )


def _read(path: Path, kind: type[Result]) -> Result | None:
    return read_result(path, kind) if path.is_file() else None
