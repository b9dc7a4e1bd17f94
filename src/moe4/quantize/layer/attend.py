"""Run a decoder layer without its routed experts, and learn what they are to do.

The batches are the same whatever the number of ranks; each is run whole by one of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from moe4.gptq.hessian import Hessian
from moe4.model.architecture import ExpertShape
from moe4.model.experts import set_capture
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.memory_bound import batch_tokens
from moe4.quantize.transfer.boundary import open_shared
from moe4.quantize.transfer.device_memory import make_activations
from moe4.quantize.transfer.ranks import Parcel


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What the router decided for all calibration tokens, sorted by expert once."""

    inputs: Activations
    """[tokens, hidden] in the compute dtype."""
    rows: Tensor
    """int64 [tokens * top_k]: token numbers, those of expert 0 first; on a GPU if the inputs are."""
    gates: Tensor
    """float32 [tokens * top_k], in the order of `rows` and beside them."""
    starts: list[int]
    """Where each expert's rows start; one more at the end."""

    def of_expert(self, expert: int) -> tuple[Tensor, Tensor]:
        """Return (token numbers, gate weights) of one expert."""
        chosen = slice(self.starts[expert], self.starts[expert + 1])
        return self.rows[chosen], self.gates[chosen]


class LayerRunner:
    """Runs a built layer over the activation store, batch by batch."""

    def __init__(
        self, bench: Workbench, layer: int, module: nn.Module, lengths: Sequence[int], hidden: Activations
    ) -> None:
        self.layer, self.module = layer, module
        self.batches = list(make_batches(lengths, batch_tokens(bench.network.config, bench.device)))
        self._bench, self._hidden = bench, hidden
        self._rotary = bench.network.build_rotary(bench.device)

    def run(self, batch: Batch) -> Tensor:
        """Return the layer's output for a batch's real tokens, [tokens, hidden] in the compute dtype."""
        device = self._bench.device
        with torch.inference_mode():
            states = batch.gather(self._hidden, device)
            positions = torch.arange(states.shape[1], device=device).unsqueeze(0)
            output = self.module(
                states,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=self._rotary(states, positions),
                use_cache=False,
            )
            return batch.select(output)

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

    `total` is float32 [tokens, hidden], and None on ranks other than 0.
    """
    num_tokens = sum(int(batch.is_token.sum()) for batch in runner.batches)
    path, shape, dtype = (
        inputs_path(work, runner.layer),
        (num_tokens, experts.hidden_size),
        bench.network.compute_dtype,
    )
    captured: dict[str, Tensor] = {}

    def run(number: int) -> Parcel:
        batch = runner.batches[number]

        def capture(states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> None:
            inputs = batch.select(states)
            captured.update(
                inputs=inputs,
                finite=torch.isfinite(inputs).all(),
                ids=batch.select(top_k_index).long(),
                gates=batch.select(top_k_weights).float(),
            )

        set_capture(bench.network.experts_module(runner.module, runner.layer), capture)
        output = runner.run(batch)
        return Parcel(tensors={"output": output, **captured})

    store = make_activations(path, shape, dtype, bench.device) if bench.ranks.is_first else None
    # What decides the routing stays beside the inputs: a GPU is not waited for before all batches are run.
    place = bench.device if isinstance(store, ResidentActivations) else torch.device("cpu")
    chosen: list[tuple[Tensor, Tensor, Tensor]] = []
    finite = []
    for number, parcel in bench.ranks.spread(len(runner.batches), run):
        assert total is not None
        assert store is not None
        rows, tensors = runner.batches[number].token_rows, parcel.tensors
        total.write(rows, tensors["output"])
        store.write(rows, tensors["inputs"])
        chosen.append((rows.to(place), tensors["ids"].to(place), tensors["gates"].to(place)))
        finite.append(tensors["finite"])
    if not all(map(bool, finite)):
        raise CalibrationError(
            f"calibration activations hold NaN or Inf before the experts of layer {runner.layer}"
        )
    shared = _in_order(chosen) if chosen else {}
    if isinstance(store, ResidentActivations):
        shared["inputs"] = store.values
    elif isinstance(store, ActivationStore) and bench.ranks.size > 1:
        store.sync()
    routed = bench.ranks.share(Parcel(tensors=shared)).tensors
    if store is None and "inputs" in routed:
        store = ResidentActivations(routed["inputs"])
    elif store is None:
        store = open_shared(path, shape, dtype)
    return _sort_by_expert(store, routed["ids"], routed["gates"], experts.num_experts)


def inputs_path(work: Path, layer: int) -> Path:
    """Return where the experts' inputs lie while a layer is run, unless they are on a GPU.

    A name of its own in each layer: a network file system may remember what the last one's held.
    """
    return work / f"inputs-{layer:05d}.partial"


def _in_order(chosen: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return ids and gates [tokens, top_k] in the tokens' order, from (tokens, ids, gates) of each batch."""
    rows, ids, gates = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    order = torch.argsort(rows)
    return {"ids": ids[order], "gates": gates[order]}


def _sort_by_expert(inputs: Activations, ids: Tensor, gates: Tensor, num_experts: int) -> Routing:
    """Return the routing of tokens whose experts are ids and gates [tokens, top_k]."""
    by_expert = torch.argsort(ids.flatten(), stable=True)  # no order but this one
    counts = torch.bincount(ids.flatten(), minlength=num_experts)
    return Routing(
        inputs=inputs,
        rows=by_expert // ids.shape[1],
        gates=gates.flatten()[by_expert],
        starts=[0, *counts.cumsum(0).tolist()],
    )
