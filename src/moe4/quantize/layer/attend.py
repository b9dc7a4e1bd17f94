"""Run a decoder layer without its routed experts, and learn what they are to do.

The batches are the same whatever the number of ranks; each is run whole by one of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from moe4.calibration.activations import (
    Activations,
    ActivationStore,
    Batch,
    ResidentActivations,
    make_batches,
)
from moe4.errors import CalibrationError
from moe4.forward.layer import Attended, LayerForward, Routes, in_token_order, input_rows, sort_by_expert
from moe4.gptq.hessian import Hessian
from moe4.model.outline import ExpertShape
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.memory_bound import batch_tokens
from moe4.quantize.transfer.boundary import open_shared
from moe4.quantize.transfer.device_memory import make_activations
from moe4.quantize.transfer.ranks import Parcel


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What the router decided for all calibration tokens, sorted by expert once."""

    inputs: Activations
    """Of the experts, [tokens * inputs_per_token, hidden] in the compute dtype."""
    routes: Routes
    """On a GPU if the inputs are."""


class LayerRunner:
    """Runs a built layer over the activation store, batch by batch."""

    def __init__(
        self,
        bench: Workbench,
        layer: int,
        module: nn.Module,
        sequences: Sequence[Sequence[int]],
        hidden: Activations,
    ) -> None:
        """Prepare to run the layer `layer`, which `module` is.

        sequences: token ids. hidden: the layer's inputs, of all tokens one after another.
        """
        self.layer, self.module = layer, module
        lengths = [len(sequence) for sequence in sequences]
        self.batches = list(make_batches(lengths, batch_tokens(bench.network, bench.device)))
        self._bench = bench
        tokens = torch.tensor(list(chain.from_iterable(sequences)), dtype=torch.int64)
        self._forward = LayerForward(bench.network, layer, module, hidden, tokens, bench.device)

    def run(self, batch: Batch) -> Tensor:
        """Return the layer's output for a batch's real tokens, [tokens, hidden] in the compute dtype."""
        return self._forward.run(batch)

    def attend(self, batch: Batch) -> Attended:
        """Run a batch up to the routed experts."""
        return self._forward.attend(batch)

    @property
    def adds_experts(self) -> bool:
        """Whether the experts' sum is simply added to the layer's output."""
        return self._forward.adds_experts

    def ignore_experts(self) -> None:
        """Run the layer without what its experts would add."""
        self._forward.ignore_experts()

    def complete(self, sums: Activations, total: Activations) -> None:
        """Put the layer's output into `total`, with the experts' sum float32 [tokens, their hidden size]."""
        for batch in self.batches:
            rows = batch.token_rows
            total.write(rows, self._forward.complete(batch, sums.read(rows)))

    def fill(self, total: Activations | None) -> None:
        """Run every batch; on rank 0 put the layer's output into `total`, float32 [tokens, hidden]."""
        work = self._bench.ranks.spread(
            len(self.batches), lambda number: Parcel(tensors={"output": self.run(self.batches[number])})
        )
        for number, parcel in work:
            assert total is not None
            total.write(self.batches[number].token_rows, parcel.tensors["output"])

    def observe(self, module: nn.Module, size: int) -> Hessian:
        """Run every batch and return the Hessian of one Linear's input [tokens, size], on every rank."""

        def part(number: int) -> Parcel:
            batch, hessian = self.batches[number], Hessian(size, self._bench.device)

            def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                hessian.add(batch.select(arguments[0]))

            handle = module.register_forward_pre_hook(hook)
            try:
                self.run(batch)
            finally:
                handle.remove()
            return pack_hessian(hessian)

        return sum_hessians(self._bench, len(self.batches), part, size)


def sum_hessians(bench: Workbench, count: int, part: Callable[[int], Parcel], size: int) -> Hessian:
    """Return the Hessian that `count` parts of the tokens add up to in their order, on every rank."""
    parcel = bench.ranks.sum_in_order(count, part)
    if parcel is None:
        return Hessian(size, bench.device)
    return Hessian.from_sum(parcel.tensors["sum"], parcel.facts["weight"], parcel.facts["num_tokens"])


def pack_hessian(hessian: Hessian) -> Parcel:
    """Return a Hessian as a part for `sum_hessians`."""
    facts = {"weight": hessian.weight, "num_tokens": hessian.num_tokens}
    return Parcel(facts=facts, tensors={"sum": hessian.sum})


def attend_and_route(
    bench: Workbench, experts: ExpertShape, runner: LayerRunner, total: Activations | None, work: Path
) -> Routing:
    """Run the layer without its experts; put its output into `total`, return what the experts do.

    `total` is float32, and None on ranks other than 0. Where the experts' sum goes through more of the layer,
    it is left for that sum.
    """
    num_tokens = sum(int(batch.is_token.sum()) for batch in runner.batches)
    path, shape, dtype = (
        inputs_path(work, runner.layer),
        (num_tokens * experts.inputs_per_token, experts.hidden_size),
        bench.network.compute_dtype,
    )

    def run(number: int) -> Parcel:
        found = runner.attend(runner.batches[number])
        return Parcel(
            tensors={
                "output": found.output,
                "inputs": found.inputs,
                "finite": torch.isfinite(found.inputs).all(),
                "ids": found.ids,
                "gates": found.gates,
            }
        )

    store = make_activations(path, shape, dtype, bench.device) if bench.ranks.is_first else None
    # What decides the routing stays beside the inputs: a GPU is not waited for before all batches are run.
    place = bench.device if isinstance(store, ResidentActivations) else torch.device("cpu")
    chosen: list[tuple[Tensor, Tensor, Tensor]] = []
    finite = []
    for number, parcel in bench.ranks.spread(len(runner.batches), run):
        assert total is not None
        assert store is not None
        rows, tensors = runner.batches[number].token_rows, parcel.tensors
        if runner.adds_experts:
            total.write(rows, tensors["output"])
        store.write(input_rows(rows, experts), tensors["inputs"])
        chosen.append((rows.to(place), tensors["ids"].to(place), tensors["gates"].to(place)))
        finite.append(tensors["finite"])
    if not all(map(bool, finite)):
        raise CalibrationError(
            f"calibration activations hold NaN or Inf before the experts of layer {runner.layer}"
        )
    shared = dict(zip(("ids", "gates"), in_token_order(chosen), strict=True)) if chosen else {}
    if isinstance(store, ResidentActivations):
        shared["inputs"] = store.values
    elif isinstance(store, ActivationStore) and bench.ranks.size > 1:
        store.sync()
    routed = bench.ranks.share(Parcel(tensors=shared)).tensors
    if store is None and "inputs" in routed:
        store = ResidentActivations(routed["inputs"])
    elif store is None:
        store = open_shared(path, shape, dtype)
    return Routing(inputs=store, routes=sort_by_expert(routed["ids"], routed["gates"], experts))


def inputs_path(work: Path, layer: int) -> Path:
    """Return where the experts' inputs lie while a layer is run, unless they are on a GPU.

    A name of its own in each layer: a network file system may remember what the last one's held.
    """
    return work / f"inputs-{layer:05d}.partial"
