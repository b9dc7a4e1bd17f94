"""What every layer of a run shares, and how one quantized or copied tensor is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moe4.checkpoint.packed import pack
from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.shard import ShardWriter
from moe4.checkpoint.source import Checkpoint
from moe4.errors import TensorError
from moe4.gptq.solver import QuantizedMatrix
from moe4.model.architecture import Network
from moe4.model.names import Part
from moe4.quantize.layer.running_probe import RunningProbe
from moe4.quantize.planning.release_plan import QuantizedWeight, ShardPlan
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.transfer.ranks import Ranks
from moe4.quantize.transfer.reader import LayerReader, Prefetcher, Stored
from moe4.recipe import Recipe

Results = dict[Part, QuantizedMatrix]
"""An expert's matrices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workbench:
    """What every layer of a run shares."""

    checkpoint: Checkpoint
    network: Network
    recipe: Recipe
    device: torch.device
    ranks: Ranks
    progress: ProgressReporter
    probe: RunningProbe | None = None
    ahead: Prefetcher | None = None
    """Reads the next layer while this one is computed, where a GPU does that."""
    reads: ReadLog = field(default_factory=ReadLog)
    """What has been read of the source, if the checkpoint records it there."""

    def decode(self, weight: QuantizedWeight, stored: Stored) -> Tensor:
        """Return a source weight, float32 [out, in], on the device, from what `Checkpoint.read` gave."""
        return self.checkpoint.decode(weight.name, stored).to(self.device).float()

    def served(self, result: QuantizedMatrix) -> Tensor:
        """Return a quantized weight [out, in] in the dtype it meets the activations in."""
        return result.dequantize().to(self.network.compute_dtype)


def stored_tensors(
    weight: QuantizedWeight, result: QuantizedMatrix, to_host: Callable[[Tensor], Tensor] = Tensor.cpu
) -> dict[str, Tensor]:
    """Return a matrix as `weight_packed`, `weight_scale` and `weight_shape`, by full name, on the CPU.

    Raises TensorError where its error is not finite.
    """
    require_finite_error(weight, result)
    base = weight.name.removesuffix("weight")
    return {
        base + "weight_packed": to_host(pack(result.codes)),
        base + "weight_scale": to_host(result.scales.to(torch.bfloat16)),
        base + "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }


def require_finite_error(weight: QuantizedWeight, result: QuantizedMatrix) -> None:
    """Raise TensorError where the squares of a matrix's values leave float32's range."""
    if not math.isfinite(result.error):
        raise TensorError(
            f"{weight.name} holds values so large that their squares overflow float32; expected magnitudes "
            "below about 1e18; the checkpoint is damaged, or its scales are of another form"
        )


def write_all(writer: ShardWriter, tensors: dict[str, Tensor]) -> None:
    """Write tensors under their names."""
    for name, tensor in tensors.items():
        writer.write(name, tensor)


def copy_tensors(bench: Workbench, plan: ShardPlan, writer: ShardWriter) -> None:
    """Copy a layer's other tensors as bytes, quantized ones as BF16. Raises TensorError on NaN or Inf."""
    LayerReader(bench.checkpoint, plan, writer, bench.device).copy_rest()
