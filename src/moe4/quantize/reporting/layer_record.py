"""What the quantization cost: a record per matrix, expert and layer, and what sums them up."""

import platform
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moe4 import __version__
from moe4.gptq.solver import QuantizedMatrix

WORST_SHOWN = 5


def matrix_record(result: QuantizedMatrix) -> dict[str, Any]:
    """Return what the report says of one matrix; errors are relative and weighted by its Hessian."""
    record: dict[str, Any] = {
        "method": result.method,
        "error": _round(result.error),
        "rtn_error": _round(result.rtn_error),
    }
    if result.fallback:
        record["fallback"] = result.fallback
    if result.raised_damping is not None:
        record["raised_damping"] = result.raised_damping
    return record


@dataclass(kw_only=True, slots=True)
class LayerRecord:
    """What happened to one layer."""

    layer: int
    shard: str
    experts: list[dict[str, Any]] = field(default_factory=list)
    """Per expert: num_tokens (None without calibration), and a matrix record each for gate, up and down."""
    linears: dict[str, dict[str, Any]] = field(default_factory=dict)

    def matrices(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (name, record) of every quantized matrix."""
        for number, expert in enumerate(self.experts):
            for part in ("gate", "up", "down"):
                yield f"layer {self.layer} expert {number} {part}_proj", expert[part]
        for name, record in self.linears.items():
            yield f"layer {self.layer} {name}", record

    def describe(self) -> str:
        """Return one line about the layer."""
        records = [record for _, record in self.matrices()]
        if not records:
            return "nothing to quantize"
        error = statistics.fmean(record["error"] for record in records)
        rtn_error = statistics.fmean(record["rtn_error"] for record in records)
        text = f"{len(self.experts)} experts, mean error {error:.5f} (round to nearest {rtn_error:.5f})"
        num_fallbacks = sum("fallback" in record for record in records)
        return text + (f", {num_fallbacks} fallbacks" if num_fallbacks else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"layer": self.layer, "shard": self.shard, "experts": self.experts, "linears": self.linears}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "LayerRecord":
        """Read back what `to_dict` gave."""
        return LayerRecord(**data)


def summarize(records: list[LayerRecord]) -> dict[str, Any]:
    """Return the figures that stand for the whole release."""
    matrices = [item for record in records for item in record.matrices()]
    tokens = [expert["num_tokens"] for record in records for expert in record.experts]
    counted = sorted(count for count in tokens if count is not None)
    summary: dict[str, Any] = {
        "num_matrices": len(matrices),
        "mean_error": _round(statistics.fmean(record["error"] for _, record in matrices)),
        "mean_rtn_error": _round(statistics.fmean(record["rtn_error"] for _, record in matrices)),
        "fallbacks": [
            {"matrix": name, "why": record["fallback"]} for name, record in matrices if "fallback" in record
        ],
        "worst": [
            {"matrix": name, "error": record["error"], "rtn_error": record["rtn_error"]}
            for name, record in sorted(matrices, key=lambda item: -item[1]["error"])[:WORST_SHOWN]
        ],
    }
    if counted:
        summary["expert_tokens"] = {
            "least": counted[0],
            "median": int(statistics.median_low(counted)),
            "most": counted[-1],
            "num_unreached": counted.count(0),
        }
    return summary


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
