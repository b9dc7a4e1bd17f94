"""A layer's routed experts, on their way from the source to the release in their order.

What is done with an expert is a solver's: `HostSolver` takes one after another, `gpu/solver.py` batches.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from moe4.calibration.activations import Activations
from moe4.checkpoint.report_file import ExpertRecord, LayerRecord
from moe4.checkpoint.shard import ShardWriter
from moe4.model.outline import ExpertShape
from moe4.quantize.layer.workbench import Workbench, write_all
from moe4.quantize.transfer.ranks import Parcel

Take = Callable[[int], Parcel]


class ExpertSolver(Protocol):
    """Quantizes this rank's experts of one layer on the tokens that the router sent them."""

    @property
    def at_once(self) -> int:
        """How many experts in a row are one rank's, as `Ranks.spread` has it."""
        ...

    def solving(self, total: Activations | None) -> AbstractContextManager[Take]:
        """Begin to read and solve; what is given takes the next expert: its record and stored tensors.

        Its output, [tokens, hidden], is one of the parcel's tensors, unless the solver has added it itself.
        The running probe is brought up to the layer's experts.
        """
        ...

    def add_output(self, total: Activations, expert: int, output: Tensor) -> None:
        """Add an expert's output, times its gates, to its tokens' rows of `total`."""
        ...


class ExpertStream:
    """The experts of one layer, spread over the ranks; only rank 0 adds, writes and records."""

    def __init__(self, bench: Workbench, experts: ExpertShape, solver: ExpertSolver) -> None:
        self._bench, self._experts, self._solver = bench, experts, solver

    def run(self, total: Activations | None, writer: ShardWriter | None, record: LayerRecord) -> None:
        """Quantize and write every expert; add its quantized output to its tokens' rows of `total`.

        Only rank 0 has `total` and `writer`, and fills in `record`.
        """
        bench, solver = self._bench, self._solver
        with solver.solving(total) as take:
            for expert, parcel in bench.ranks.spread(self._experts.num_experts, take, solver.at_once):
                assert total is not None
                assert writer is not None
                output = parcel.tensors.pop("output", None)
                if output is not None:
                    solver.add_output(total, expert, output)
                if bench.probe is not None:
                    bench.probe.add_expert(expert, parcel.tensors)
                write_all(writer, parcel.stored)
                record.experts.append(ExpertRecord(**parcel.facts))
                bench.progress.expert_done(record.layer, expert)
