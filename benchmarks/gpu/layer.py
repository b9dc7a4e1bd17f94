"""A made-up layer of routed experts, and a run of it as on a GPU."""

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import silu

from moe4.calibration.activations import ResidentActivations
from moe4.checkpoint.encodings import dequantize_blocks
from moe4.checkpoint.report_file import LayerRecord
from moe4.forward.layer import Routes
from moe4.gptq.gpu.products import add_gram_
from moe4.model.names import PARTS
from moe4.model.outline import ExpertShape
from moe4.quantize.gpu import solver as gpu_solver
from moe4.quantize.layer.attend import Routing
from moe4.quantize.layer.expert_stream import ExpertStream
from moe4.quantize.transfer import device_memory
from moe4.quantize.transfer.ranks import Parcel, Ranks
from moe4.recipe import Recipe

BLOCK = 128
CHUNK_TOKENS = 32768
PREFIX = "model.layers.1.mlp.experts"


class MemoryRows:
    """An activation store in the host's memory."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape = values, tuple(values.shape)

    def read(self, rows: Tensor | slice) -> Tensor:
        return self.values[rows] if isinstance(rows, slice) else self.values.index_select(0, rows)

    def write(self, rows: slice, values: Tensor) -> None:
        self.values[rows].copy_(values)

    def add(self, rows: Tensor, values: Tensor) -> None:
        self.values.index_add_(0, rows, values)


class MemoryCheckpoint:
    """Block-FP8 weights in the host's memory; a read copies them, as one from the page cache does."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[Tensor, Tensor]] = {}

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        weight, scales = self.stored[name]
        return weight.clone(), scales.clone()

    def read_together(self, names: list[str], *, pinned: bool = False) -> list[tuple[Tensor, ...]]:
        return [self.read(name) for name in names]

    def place(self, name: str) -> str:
        return name

    def decode(self, name: str, pieces: tuple[Tensor, ...]) -> Tensor:
        weight = dequantize_blocks(pieces[0], pieces[1], (BLOCK, BLOCK))
        assert torch.isfinite(weight.sum()), name
        return weight


class HashingWriter:
    """Takes the SHA-256 of what a shard's writer would write."""

    def __init__(self) -> None:
        self.digest, self.num_bytes = hashlib.sha256(), 0

    def write(self, name: str, tensor: Tensor) -> None:
        self.digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        self.num_bytes += tensor.nbytes


class Network:
    compute_dtype = torch.bfloat16

    def activation(self, layer: int) -> Any:
        return silu


@dataclass(kw_only=True)
class Layer:
    """The layer's tokens, router and weights, in the host's memory."""

    shape: ExpertShape
    inputs: Tensor
    rows: Tensor
    gates: Tensor
    starts: list[int]
    checkpoint: MemoryCheckpoint
    recipe: Recipe = field(default_factory=lambda: Recipe(group_size=128))

    def describe(self) -> dict[str, Any]:
        counts = sorted(b - a for a, b in zip(self.starts, self.starts[1:], strict=False))
        return {
            "experts": self.shape.num_experts,
            "hidden": self.shape.hidden_size,
            "width": self.shape.width,
            "tokens": self.inputs.shape[0],
            "expert_tokens": {"least": counts[0], "median": counts[len(counts) // 2], "most": counts[-1]},
            "weight_bytes": sum(t.nbytes for pieces in self.checkpoint.stored.values() for t in pieces),
            "input_bytes": self.inputs.nbytes,
        }

    def weights(self, expert: int) -> dict[str, Tensor]:
        """Return an expert's weights, float32 on the device."""
        found = {}
        for part in PARTS:
            name = self.shape.weight_name(expert, part)
            pieces = tuple(t.cuda() for t in self.checkpoint.read(name))
            found[str(part)] = self.checkpoint.decode(name, pieces)
        return found

    def tokens(self, expert: int) -> Tensor:
        """Return an expert's tokens on the device."""
        rows = self.rows[self.starts[expert] : self.starts[expert + 1]]
        return self.inputs.index_select(0, rows).cuda()

    def gate_up(self, count: int) -> tuple[Tensor, Tensor]:
        """Return W [count, in, out] and H [count, in, in] of the first experts' gate and up."""
        weights = [self.weights(expert) for expert in range(count)]
        W = torch.stack([torch.cat([w["gate"], w["up"]]).T for w in weights]).contiguous()
        H = torch.zeros(count, self.shape.hidden_size, self.shape.hidden_size, device="cuda")
        for expert in range(count):
            x = self.tokens(expert)
            add_gram_(H[expert], x).mul_(2.0 / len(x))
        return W, H


def make_layer(experts: int, hidden: int, width: int, tokens: int, top_k: int) -> Layer:
    """Make everything on the device, piece by piece."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, device=device, generator=generator)

    shape = ExpertShape(num_experts=experts, hidden_size=hidden, width=width, prefix=PREFIX)
    spectrum = torch.arange(1, hidden + 1, device=device).float().rsqrt()
    basis = torch.linalg.qr(randn(hidden, hidden))[0]
    gains = torch.exp(0.5 * randn(hidden))
    gains[torch.randperm(hidden, device=device, generator=generator)[:8]] *= 20
    mixing = (spectrum[:, None] * basis * (hidden**0.5 / spectrum.norm()) * gains).bfloat16()
    centres = (0.5 * randn(64, hidden)).bfloat16()
    router = randn(hidden, experts) / hidden**0.5
    popularity = 0.6 * randn(experts)
    inputs = torch.empty(tokens, hidden, dtype=torch.bfloat16)
    ids = torch.empty(tokens, top_k, dtype=torch.int64)
    gates = torch.empty(tokens, top_k)
    for start in range(0, tokens, CHUNK_TOKENS):
        here = slice(start, min(start + CHUNK_TOKENS, tokens))
        count = here.stop - start
        cluster = torch.randint(0, 64, (count,), device=device, generator=generator)
        raw = randn(count, hidden).bfloat16() + centres[cluster]
        x = raw @ mixing
        scores = torch.sigmoid(raw.float() @ router + popularity)
        best, chosen = scores.topk(top_k, dim=1)
        inputs[here].copy_(x)
        ids[here].copy_(chosen)
        gates[here].copy_(best / best.sum(1, keepdim=True))
    by_expert = torch.argsort(ids.flatten().cuda(), stable=True).cpu()
    counts = torch.bincount(ids.flatten(), minlength=experts)
    checkpoint = MemoryCheckpoint()
    for expert in range(experts):
        for part in PARTS:
            rows, columns = shape.weight_shape(part)
            weight = randn(rows, columns) * torch.exp(0.3 * randn(rows, 1)) * torch.exp(0.3 * randn(columns))
            blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK) / columns**0.5
            scales = blocks.abs().amax((1, 3)) / 448
            stored = (blocks / scales[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
            checkpoint.stored[shape.weight_name(expert, part)] = (stored.cpu(), scales.cpu())
    torch.cuda.empty_cache()
    return Layer(
        shape=shape,
        inputs=inputs,
        rows=by_expert // top_k,
        gates=gates.flatten()[by_expert],
        starts=[0, *counts.cumsum(0).tolist()],
        checkpoint=checkpoint,
    )


class Stages:
    """Seconds on the device by stage, from events; nothing waits for them before the end."""

    def __init__(self) -> None:
        self._events: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        with self._lock:
            self._events[name].append((first, last))

    def seconds(self) -> dict[str, float]:
        torch.cuda.synchronize()
        return {
            name: round(sum(first.elapsed_time(last) for first, last in pairs) / 1000, 3)
            for name, pairs in self._events.items()
        }


@dataclass(kw_only=True)
class Bench:
    """What a stream of experts and its solver ask of a Workbench."""

    checkpoint: MemoryCheckpoint
    recipe: Recipe
    device: torch.device = field(default_factory=lambda: torch.device("cuda", 0))
    network: Network = field(default_factory=Network)
    ranks: Ranks = field(default_factory=Ranks)
    probe: None = None

    def decode(self, weight: Any, stored: tuple[Tensor, ...]) -> Tensor:
        return self.checkpoint.decode(weight.name, stored)

    def own_numbers(self, count: int) -> range:
        return range(count)

    @property
    def progress(self) -> Self:
        return self

    def expert_done(self, text: str) -> None:
        """Take no notice."""


class TimedBatches(gpu_solver.Batches):
    """Notes how long each thread works and waits."""

    host: ClassVar[dict[str, float]] = defaultdict(float)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.host[name] += time.perf_counter() - started

    def take(self, expert: int) -> Parcel:
        with self._timed("writer waits for solves"):
            return super().take(expert)

    def _read_batch(self, experts: list[int]) -> Any:
        with self._timed("reader reads, pins and starts copies"):
            return super()._read_batch(experts)

    def _solve_batch(self, future: Any) -> Any:
        with self._timed("solver waits for reads"):
            future.result()
        with self._timed("solver solves"):
            return super()._solve_batch(future)


class SerialBatches(TimedBatches):
    """Does one thing after another."""

    def __enter__(self) -> Self:
        return self

    def take(self, expert: int) -> Parcel:
        if not self._ready:
            self._begin_next()
            self._ready = self._solved.popleft().result()
            torch.cuda.synchronize()
        return self._ready.pop(expert)


def run_layer(layer: Layer, experts: int, *, resident: bool, overlapped: bool = True) -> dict[str, Any]:
    """Quantize the first experts of a layer; seconds by stage, peak memory of the GPU, errors."""
    shape = ExpertShape(
        num_experts=experts,
        hidden_size=layer.shape.hidden_size,
        width=layer.shape.width,
        prefix=PREFIX,
    )
    routes = Routes(rows=layer.rows, inputs=layer.rows, gates=layer.gates, starts=layer.starts[: experts + 1])
    zeros = torch.zeros(layer.inputs.shape)
    inputs: Any = ResidentActivations(layer.inputs.cuda()) if resident else MemoryRows(layer.inputs)
    total: Any = ResidentActivations(zeros.cuda()) if resident else MemoryRows(zeros)
    routing = Routing(inputs=inputs, routes=routes)
    bench, stages, writer = Bench(checkpoint=layer.checkpoint, recipe=layer.recipe), Stages(), HashingWriter()
    record = LayerRecord(layer=1, shard="", experts=[], linears={})
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, free_bytes = torch.cuda.memory_allocated(), device_memory.free_bytes
    batches = gpu_solver.Batches
    gpu_solver.Batches = TimedBatches if overlapped else SerialBatches  # type: ignore[misc]
    TimedBatches.host.clear()
    if not resident:
        device_memory.free_bytes = lambda _: 0
    try:
        started = time.perf_counter()
        solver = gpu_solver.DeviceSolver(bench, shape, 1, routing, stages)  # type: ignore[arg-type]
        stream = ExpertStream(bench, shape, solver)  # type: ignore[arg-type]
        torch.cuda.synchronize()
        prepared = time.perf_counter()
        stream.run(total, writer, record)  # type: ignore[arg-type]
        torch.cuda.synchronize()
        ended = time.perf_counter()
    finally:
        device_memory.free_bytes = free_bytes
        gpu_solver.Batches = batches  # type: ignore[misc]
    errors = {
        part: sum(expert[part]["error"] for expert in record.experts) / experts
        for part in ("gate", "up", "down")
    }
    rtn = {
        part: sum(expert[part]["rtn_error"] for expert in record.experts) / experts
        for part in ("gate", "up", "down")
    }
    return {
        "experts": experts,
        "expert_tokens": layer.starts[experts],
        "seconds": round(ended - started, 2),
        "seconds_inputs_and_pool": round(prepared - started, 2),
        "seconds_experts": round(ended - prepared, 2),
        "stages": stages.seconds(),
        "host": {name: round(value, 3) for name, value in TimedBatches.host.items()},
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() - before,
        "peak_gpu_bytes_reserved": torch.cuda.max_memory_reserved(),
        "bytes_written": writer.num_bytes,
        "sha256": writer.digest.hexdigest(),
        "mean_error": errors,
        "mean_rtn_error": rtn,
        "fallbacks": sum("fallback" in expert[part] for expert in record.experts for part in errors),
        "output_norm": float(total.values[: 1 << 16].norm()),
    }
