"""A release's measured results: its quantization report, and what `moe4 prove` wrote beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe4.checkpoint.index import CONFIG_NAME, read_config
from moe4.checkpoint.release import REPORT_NAME
from moe4.checkpoint.report import PROOF_FOLDER, read_report
from moe4.config import ModelConfig
from moe4.errors import MissingFileError
from moe4.evaluate.files import COMPARISON, EVALUATION, TOOLCHECK, read_result


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """A release and what was measured of it, as `evaluate/files.py` has it; None for what was not."""

    folder: Path
    config: ModelConfig
    report: dict[str, Any]
    evaluation: dict[str, Any] | None
    comparison: dict[str, Any] | None
    toolcheck: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def read_proof(out: Path, proof: Path | None = None) -> Proof:
    """Read a release's results, from `proof` or OUT/proof.

    Raises CheckpointError's children, or EvaluationError for a result that is not as its file has to be.
    """
    for name in (CONFIG_NAME, REPORT_NAME):
        if not (out / name).is_file():
            raise MissingFileError(f"{out} is no release of moe4: it has no {name}")
    folder = proof or out / PROOF_FOLDER
    if proof is not None and not proof.is_dir():
        raise MissingFileError(f"--proof {proof} is not a folder")
    found = {
        name: read_result(folder / name) if (folder / name).is_file() else None
        for name in (EVALUATION, COMPARISON, TOOLCHECK)
    }
    return Proof(
        folder=out,
        config=read_config(out),
        report=read_report(out),
        evaluation=found[EVALUATION],
        comparison=found[COMPARISON],
        toolcheck=found[TOOLCHECK],
    )
