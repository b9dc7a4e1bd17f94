"""What a run will need, from shapes alone: memory, disk, and how much goes through a layer at once.

Memory does not grow with the number of experts or layers. What each part of it is for stands beside it; the
sum is an upper bound that tests and benchmarks hold to what was measured (docs/scale.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe4.arguments import argument
from moe4.checkpoint.source import Checkpoint
from moe4.errors import MemoryBudgetError
from moe4.machine.at_once import BATCH_TOKENS, BEHIND_BYTES, PROBE_BATCH_TOKENS, RESIDENT_BYTES
from moe4.machine.memory import available_memory_bytes
from moe4.model.outline import ExpertShape, Outline
from moe4.quantize.planning.release_plan import ReleasePlan, ShardPlan
from moe4.units import format_bytes

if TYPE_CHECKING:
    import torch

BASE_BYTES = 768 << 20  # Python, torch, transformers, and what the allocator keeps
BATCH_BYTES = 512 << 20
GPU_BATCH_BYTES = 4 << 30
GPU_BASE_BYTES = 3 << 30  # the same with CUDA's libraries
GPU_EXPERTS_AHEAD = 32  # read and on their way to the GPU: the batches of two solvers and two more
ROWS_AT_ONCE = 4096  # of an expert's tokens
KEPT_BYTES = 256 << 20  # of an expert's inner activations; with more tokens they are computed twice
FLOAT_BYTES = 4
PROBE_BYTES = (
    32  # a token and channel: input, sum and experts' input of two passes in float32 and one in bf16
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Peak resident bytes of one process, by what is going on at the time."""

    base_bytes: int
    phases: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """The most at any time."""
        return self.base_bytes + max(self.phases.values())

    @property
    def largest_phase(self) -> str:
        """What is going on at the peak."""
        return max(self.phases, key=lambda name: self.phases[name])


def batch_tokens(network: Outline, device: "torch.device | None" = None) -> int:
    """Return how many tokens run through a layer at once; without a device, on a CPU.

    That depends on the network and the kind of device alone, since it decides the order of sums.
    """
    most = GPU_BATCH_BYTES if device is not None and device.type == "cuda" else BATCH_BYTES
    return max(1, min(BATCH_TOKENS, most // token_bytes(network)))


def token_bytes(network: Outline) -> int:
    """Return the bytes that one token of a batch needs inside a decoder layer, at most."""
    config = network.config
    hidden = int(config.hidden_size)
    heads = int(config.num_attention_heads)
    nope = int(getattr(config, "qk_nope_head_dim", 0) or 0)
    rope = int(getattr(config, "qk_rope_head_dim", 0) or 0)
    head = nope + rope or int(getattr(config, "head_dim", None) or hidden // heads)
    inner = max(int(getattr(config, "intermediate_size", 0) or 0), hidden)
    # Queries, keys, values and output of attention, some of them twice while heads are put in order; the
    # states with their float32 norms; gate, up and their product.
    states = 16 * network.state_width
    return 2 * (8 * heads * head + 3 * inner) + states + _copies_bytes(network)


def _copies_bytes(network: Outline) -> int:
    """Return the bytes of a token's copies for each expert, where the router scales one for each.

    As repeated, as scaled, and what the experts answer.
    """
    sizes = [shape.num_experts * shape.hidden_size for shape in network.experts if shape and shape.own_inputs]
    return 3 * network.item_bytes * max(sizes, default=0)


def memory_need(
    plan: ReleasePlan,
    network: Outline,
    checkpoint: Checkpoint,
    num_tokens: int,
    *,
    probe_tokens: int = 0,
    device: "torch.device | None" = None,
) -> MemoryNeed:
    """Return what one process needs of the host's memory at most, with `num_tokens` of calibration.

    `probe_tokens` are those of the expected answers (`layer/running_probe.py`).
    """
    config, item = network.config, network.item_bytes
    largest = max((stored.spec.num_bytes for name, stored in _loaded(plan, checkpoint)), default=0)
    phases = {"copying a tensor": 7 * largest}
    shape = next(filter(None, network.experts))
    weights = shape.hidden_size * shape.width
    stored = max(_stored_bytes(checkpoint, shape))
    probe = probe_tokens * network.state_width * PROBE_BYTES
    probed_expert = probe + (10 * shape.num_weights if probe_tokens else 0)  # in each pass's dtype
    if probe_tokens:
        floats = max(_layer_bytes(s, network, FLOAT_BYTES) for s in plan.shards if s.layer is not None)
        batch = min(probe_tokens, PROBE_BATCH_TOKENS) * 2 * token_bytes(network)
        phases["the expected answers"] = floats + 7 * largest + batch + probe
    if plan.recipe.method != "gptq":
        phases["an expert"] = 6 * stored + 5 * FLOAT_BYTES * weights + probed_expert
        return MemoryNeed(base_bytes=BASE_BYTES, phases=phases)
    routing = num_tokens * int(getattr(config, "num_experts_per_tok", 1)) * 40
    if device is not None and device.type == "cuda":
        phases = {"a layer on a GPU": _staging_bytes(plan, checkpoint, shape) + routing + probe}
        return MemoryNeed(base_bytes=GPU_BASE_BYTES, phases=phases)
    tokens = min(num_tokens, max(batch_tokens(network), plan.recipe.calibration.max_sequence_tokens))
    layers = [_layer_bytes(shard, network, item) for shard in plan.shards if shard.layer is not None]
    mapped = 4 * min(2 * RESIDENT_BYTES, num_tokens * network.state_width * FLOAT_BYTES)
    phases["a layer's attention"] = (
        max(layers) + 7 * largest + tokens * token_bytes(network) + _stage_bytes(plan) + mapped
    )
    solving = _solve_bytes(shape, item, num_tokens)
    kept = _kept_bytes(plan, network, checkpoint)
    phases["an expert"] = 6 * stored + solving + routing + mapped + probed_expert + kept
    return MemoryNeed(base_bytes=BASE_BYTES, phases=phases)


def _kept_bytes(plan: ReleasePlan, network: Outline, checkpoint: Checkpoint) -> int:
    """Return what is kept of a layer while its experts are solved, for it to run again with their sum.

    Only families that are not checked may need that (`forward/layer.py`, `adds_experts`); which of them do is
    known only once a layer has run.
    """
    if checkpoint.config.is_checked:
        return 0
    layers = (shard for shard in plan.shards if shard.experts is not None)
    return max((_layer_bytes(shard, network, network.item_bytes) for shard in layers), default=0)


def _staging_bytes(plan: ReleasePlan, checkpoint: Checkpoint, shape: ExpertShape) -> int:
    """Return the pinned memory through which a layer goes to a GPU and comes back.

    Blocks of it are powers of two: batches of experts as they are stored, what waits to be written, a piece
    of hidden states, and the layer's largest other tensor.
    """

    def block(num_bytes: int) -> int:
        return 1 << max(0, num_bytes - 1).bit_length()

    stored = sum(map(block, _stored_bytes(checkpoint, shape)))
    largest = max((tensor.spec.num_bytes for _, tensor in _loaded(plan, checkpoint)), default=0)
    return GPU_EXPERTS_AHEAD * stored + 2 * BEHIND_BYTES + 4 * block(largest)


def _stored_bytes(checkpoint: Checkpoint, shape: ExpertShape) -> list[int]:
    """Return the bytes of an expert's parts on disk, or in BF16 if they are missing (the plan says so)."""
    found = [checkpoint.tensors.get(name) for name in shape.weight_names(0)]
    plain = 2 * shape.hidden_size * shape.width
    return [plain if stored is None else max(stored.spec.num_bytes, stored.read_bytes) for stored in found]


def require_memory(need: MemoryNeed, budget_bytes: int | None) -> None:
    """Raise MemoryBudgetError if the need is above the budget, or without one, above what the machine has."""
    limit = budget_bytes if budget_bytes is not None else available_memory_bytes()
    if need.peak_bytes <= limit:
        return
    free = format_bytes(limit)
    found, remedy = (
        (f"this machine has {free} free", "free some")
        if budget_bytes is None
        else (f"{argument('memory_budget')} allows {free}", "raise it")
    )
    if need.largest_phase != "copying a tensor":
        remedy += ", or calibrate with fewer or shorter sequences"
    raise MemoryBudgetError(
        f"quantizing needs up to {format_bytes(need.peak_bytes)} of memory, for {need.largest_phase}, but "
        f"{found}; {remedy}"
    )


def disk_need(
    plan: ReleasePlan,
    network: Outline,
    checkpoint: Checkpoint,
    num_tokens: int,
    there: Path,
    *,
    probe_tokens: int = 0,
) -> int:
    """Return the room a run still needs in the folder `there`: shards, side files, activations."""
    needed = sum(path.stat().st_size for path in checkpoint.side_files()) + (16 << 20)
    for shard in plan.shards:
        needed += 0 if (there / shard.file_name).is_file() else shard.num_bytes
    # The inputs of a layer, of the one before and of the one after, the experts', and the float32 sum.
    most = max(shape.inputs_per_token for shape in network.experts if shape)
    per_value = (3 + most) * network.item_bytes + 4
    values = num_tokens * per_value + probe_tokens * 2 * PROBE_BYTES
    return needed + network.state_width * values


def _loaded(plan: ReleasePlan, checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    """Return the tensors beside routed experts that are held whole: a layer's, and what becomes BF16."""
    return [
        (name, checkpoint.tensors[name])
        for shard in plan.shards
        for name in shard.copied
        if shard.layer is not None or checkpoint.is_encoded(name)
    ]


def _layer_bytes(shard: ShardPlan, network: Outline, item: int) -> int:
    """Return a layer's weights beside its routed experts, in the compute dtype."""
    total = 0
    for size in network.layer_tensors(shard.layer_number).values():
        elements = 1
        for side in size:
            elements *= side
        total += elements * item
    return total


def _stage_bytes(plan: ReleasePlan) -> int:
    """Return what solving the largest Linears that share an input takes."""
    needs = [
        FLOAT_BYTES * (5 * stage[0].shape[1] ** 2 + 6 * sum(rows * columns for rows, columns in shapes))
        for shard in plan.shards
        for stage in shard.linear_stages
        for shapes in [[weight.shape for weight in stage]]
    ]
    return max(needs, default=0)


def _solve_bytes(shape: ExpertShape, item: int, num_tokens: int) -> int:
    """Return what an expert's solve takes beside its stored bytes.

    Hessians of the hidden size: the pool's and the expert's, and while it is factored its permuted copy and
    the factor, of which one is left for the solve. Gate and up: as read, stacked, what is lost, and a
    transposed copy, with codes three times. Its tokens: a piece, in float32 too, and the inner activations.
    """
    hidden, width = shape.hidden_size, shape.width
    pieces = min(ROWS_AT_ONCE, num_tokens)
    tokens = pieces * (hidden * (2 * item + 2 * FLOAT_BYTES) + width * 4 * FLOAT_BYTES)
    tokens += min(2 * KEPT_BYTES, num_tokens * width * item) + num_tokens * 32
    factoring = 6 * hidden**2 * FLOAT_BYTES  # with LAPACK's own copy
    stacked = len(shape.first_parts) * hidden * width
    solving = 4 * hidden**2 * FLOAT_BYTES + stacked * (5 * FLOAT_BYTES + 3)
    return max(factoring, solving) + tokens
