"""Time one expert and one layer of made-up weights on this machine, by the code that a run takes."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe4.calibration.activations import ActivationStore, Batch
from moe4.checkpoint.shard import Slabs
from moe4.checkpoint.source import Checkpoint
from moe4.forward.layer import Routes
from moe4.model.architecture import Network
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.quantize.layer.attend import LayerRunner, Routing
from moe4.quantize.layer.host_solver import HostSolver
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.memory_bound import batch_tokens
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.run.layer import round_expert
from moe4.quantize.transfer.ranks import Ranks
from moe4.quantize.transfer.reader import Stored
from moe4.recipe import Recipe, override

MOST_TOKENS = 65536  # in a probe's expert


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What the probe took."""

    expert_seconds: float
    expert_tokens: int
    attention_seconds: float
    """Of all calibration tokens through one layer without its experts."""
    num_threads: int


class _MadeUp(Checkpoint):
    """Random weights under any name, of the shapes asked for."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def read(self, name: str, *, pinned: bool = False, slabs: Slabs | None = None) -> Stored:
        shape = self._shapes[name]
        if len(shape) == 1:
            return (torch.ones(shape, dtype=torch.float32),)
        return (_random(*shape).div_(shape[-1] ** 0.5),)

    def decode(self, name: str, pieces: Stored) -> Tensor:
        return pieces[0]

    def load(self, name: str) -> Tensor:
        return self.read(name)[0]


def _random(*shape: int) -> Tensor:
    """Return normal numbers, without touching the process's own generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def probe(network: Network, recipe: Recipe, num_tokens: int) -> Probe:
    """Solve one expert with an even share of the tokens and run one batch through its layer.

    Takes as long as one expert does, and as much memory and, in the temporary folder, its activations.
    """
    layer, shape = next((number, shape) for number, shape in enumerate(network.experts) if shape)
    shapes = dict(network.layer_tensors(layer))
    shapes.update({shape.weight_name(0, part): shape.weight_shape(part) for part in shape.parts})
    bench = Workbench(
        checkpoint=_MadeUp(shapes),
        network=network,
        recipe=recipe if recipe.method == "gptq" else override(recipe, method="rtn"),
        device=torch.device("cpu"),
        ranks=Ranks(),
        progress=ProgressReporter(),
    )
    stored = {part: bench.checkpoint.read(shape.weight_name(0, part)) for part in shape.parts}
    if recipe.method != "gptq":
        started = time.perf_counter()
        round_expert(bench, shape, 0, stored)
        seconds = time.perf_counter() - started
        return Probe(
            expert_seconds=seconds,
            expert_tokens=0,
            attention_seconds=0.0,
            num_threads=torch.get_num_threads(),
        )
    top_k = int(getattr(network.config, "num_experts_per_tok", 1))
    tokens = max(1, min(num_tokens * top_k // shape.num_experts, MOST_TOKENS))
    with tempfile.TemporaryDirectory(prefix="moe4-probe-") as name:
        expert_seconds = _time_expert(bench, shape, layer, stored, tokens, Path(name))
        attention_seconds = _time_layer(bench, layer, num_tokens, Path(name))
    return Probe(
        expert_seconds=expert_seconds,
        expert_tokens=tokens,
        attention_seconds=attention_seconds,
        num_threads=torch.get_num_threads(),
    )


def _time_expert(
    bench: Workbench,
    shape: ExpertShape,
    layer: int,
    stored: dict[Part, Stored],
    tokens: int,
    folder: Path,
) -> float:
    size, dtype = (tokens, shape.hidden_size), bench.network.compute_dtype
    inputs = ActivationStore(folder / "inputs", size, dtype, create=True)
    for rows in inputs.pieces():
        inputs.write(rows, _random(rows.stop - rows.start, shape.hidden_size))
    total = ActivationStore(folder / "total", size, torch.float32, create=True)
    numbers = torch.arange(tokens)
    routes = Routes(
        rows=numbers, inputs=numbers, gates=torch.ones(tokens, dtype=torch.float32), starts=[0, tokens]
    )
    routing = Routing(inputs=inputs, routes=routes)
    solver = HostSolver(bench, shape, layer, routing)
    started = time.perf_counter()
    solver.solve(0, stored, total)
    return time.perf_counter() - started


def _time_layer(bench: Workbench, layer: int, num_tokens: int, folder: Path) -> float:
    length = min(bench.recipe.calibration.max_sequence_tokens, num_tokens)
    tokens = max(length, min(num_tokens, batch_tokens(bench.network, bench.device)) // length * length)
    hidden_size = bench.network.state_width
    dtype = bench.network.compute_dtype
    hidden = ActivationStore(folder / "hidden", (tokens, hidden_size), dtype, create=True)
    hidden.write(slice(0, tokens), _random(tokens, hidden_size))
    module = bench.network.build_layer(layer, bench.checkpoint.load, bench.device)
    runner = LayerRunner(bench, layer, module, [[0] * length] * (tokens // length), hidden)
    runner.ignore_experts()
    batch: Batch = runner.batches[0]
    runner.run(Batch(rows=batch.rows[:1]))
    started = time.perf_counter()
    runner.run(batch)
    return (time.perf_counter() - started) * num_tokens / int(batch.is_token.sum())
