"""What the quantization cost: a record per matrix, expert and layer, and what sums them up."""

import platform
import statistics
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from moe4 import __version__
from moe4.checkpoint.report_file import (
    ExpertRecord,
    ExpertTokens,
    Fallback,
    LayerRecord,
    MatrixRecord,
    Summary,
    WorstMatrix,
)
from moe4.gptq.solver import QuantizedMatrix
from moe4.model.names import Part
from moe4.schema import given

WORST_SHOWN = 5


def matrix_record(result: QuantizedMatrix) -> MatrixRecord:
    """Return what the report says of one matrix; errors are relative and weighted by its Hessian."""
    unusual = given(fallback=result.fallback or None, raised_damping=result.raised_damping)
    return MatrixRecord(
        method=result.method, error=_round(result.error), rtn_error=_round(result.rtn_error), **unusual
    )


def expert_record(num_tokens: int | None, results: Mapping[Part, QuantizedMatrix]) -> ExpertRecord:
    """Return what the report says of an expert; num_tokens: None without calibration."""
    records: dict[str, MatrixRecord] = {part: matrix_record(result) for part, result in results.items()}
    return ExpertRecord(num_tokens=num_tokens, **records)


def describe_layer(record: LayerRecord) -> str:
    """Return one line about a layer."""
    records = [matrix for _, matrix in record.matrices()]
    if not records:
        return "nothing to quantize"
    error = statistics.fmean(matrix.error for matrix in records)
    rtn_error = statistics.fmean(matrix.rtn_error for matrix in records)
    text = f"{len(record.experts)} experts, mean error {error:.5f} (round to nearest {rtn_error:.5f})"
    num_fallbacks = sum(matrix.fallback is not None for matrix in records)
    return text + (f", {num_fallbacks} fallbacks" if num_fallbacks else "")


def summarize(records: list[LayerRecord]) -> Summary:
    """Return the figures that stand for the whole release."""
    matrices = [item for record in records for item in record.matrices()]
    tokens = [expert.num_tokens for record in records for expert in record.experts]
    counted = sorted(count for count in tokens if count is not None)
    reached = None
    if counted:
        reached = ExpertTokens(
            least=counted[0],
            median=int(statistics.median_low(counted)),
            most=counted[-1],
            num_unreached=counted.count(0),
        )
    return Summary(
        num_matrices=len(matrices),
        mean_error=_round(statistics.fmean(record.error for _, record in matrices)),
        mean_rtn_error=_round(statistics.fmean(record.rtn_error for _, record in matrices)),
        fallbacks=[
            Fallback(matrix=name, why=record.fallback)
            for name, record in matrices
            if record.fallback is not None
        ],
        worst=[
            WorstMatrix(matrix=name, error=record.error, rtn_error=record.rtn_error)
            for name, record in sorted(matrices, key=lambda item: -item[1].error)[:WORST_SHOWN]
        ],
        **given(expert_tokens=reached),
    )


def software_versions() -> dict[str, str]:
    """Return the versions a result depends on."""
    names = ("torch", "transformers", "safetensors", "compressed-tensors")
    return {
        "moe4": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure would hold the size of whatever started this process, too
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _round(value: float) -> float:
    """Keep six significant digits: enough to compare by, and readable."""
    return float(f"{value:.6g}")
