"""What each layer of a run is expected to take, before any of it is done.

Work is counted in operations, and their rate is a matrix product's on this machine, measured when the run
begins, times what whole stages have reached of it.
"""

import time

import torch

from moe4.model.architecture import Network
from moe4.model.outline import ExpertShape
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.release_plan import ReleasePlan, ShardPlan
from moe4.quantize.reporting.time_left import LayerTime
from moe4.quantize.run.commit_queue import MOST_BEHIND, commits_behind
from moe4.recipe import Recipe

# By kind of device: the share of a product's rate that whole stages reached, and seconds that no operations
# explain. From runs of k2-tiny and of Kimi-K2's widths on two Zen 4 cores and an H200.
REST_SHARE = {"cpu": 0.5, "cuda": 0.1}
EXPERT_SHARE = {"cpu": 0.5, "cuda": 0.12}
REST_SECONDS = {"cpu": 0.3, "cuda": 0.5}
EXPERT_SECONDS = {"cpu": 0.08, "cuda": 0.004}
COPY_BYTES_PER_SECOND = 5e8
SYNC_SECONDS = 2.0  # until a layer's files are on the disk
HASHED_BYTES_PER_SECOND = 1.3e9  # of one shard, by one thread, as SHA-256


def expected_times(plan: ReleasePlan, bench: Workbench, num_tokens: int) -> list[LayerTime]:
    """Return what each shard of a plan is expected to take on this machine, ranks sharing the work."""
    network, num_ranks = bench.network, bench.ranks.size
    rate = measure_rate(bench.device, network.compute_dtype) * num_ranks
    kind = "cuda" if bench.device.type == "cuda" else "cpu"
    times = []
    for shard in plan.shards:
        if shard.layer is None:
            times.append(LayerTime(rest_seconds=shard.num_bytes / COPY_BYTES_PER_SECOND, waits=True))
            continue
        work = 2.0 * num_tokens * _num_weights(network, shard) if num_tokens else 0.0
        rest = REST_SECONDS[kind] + work / (REST_SHARE[kind] * rate)
        if shard.experts is None:
            commit = _commit_seconds(bench, shard, num_tokens, rest)
            times.append(LayerTime(rest_seconds=rest, commit_seconds=commit))
            continue
        top_k = int(getattr(network.config, "num_experts_per_tok", 1))
        tokens = num_tokens * top_k / shard.experts.num_experts
        operations = expert_operations(shard.experts, bench.recipe, tokens)
        expert = EXPERT_SECONDS[kind] / num_ranks + operations / (EXPERT_SHARE[kind] * rate)
        hashed = shard.num_bytes / HASHED_BYTES_PER_SECOND / MOST_BEHIND
        expert = max(expert, hashed / shard.experts.num_experts)
        commit = _commit_seconds(bench, shard, num_tokens, rest + expert * shard.experts.num_experts)
        times.append(
            LayerTime(
                rest_seconds=rest,
                expert_seconds=expert,
                num_experts=shard.experts.num_experts,
                commit_seconds=commit,
            )
        )
    return times


def _commit_seconds(bench: Workbench, shard: ShardPlan, num_tokens: int, computed: float) -> float:
    """Return how long after its computation of so many seconds a layer is committed; 0 if at once.

    Its shard is hashed while it is computed, the next layer's input when it is there.
    """
    if not commits_behind(bench.device):
        return 0.0
    network = bench.network
    is_last = shard.layer_number + 1 == network.num_layers
    size = network.compute_dtype.itemsize * network.state_width
    hidden = 0 if is_last else num_tokens * size
    return SYNC_SECONDS + max(
        hidden / HASHED_BYTES_PER_SECOND, shard.num_bytes / HASHED_BYTES_PER_SECOND - computed
    )


def expert_operations(shape: ExpertShape, recipe: Recipe, num_tokens: float) -> float:
    """Return the operations of an expert with so many tokens: Hessians, factors, solves, its own forward."""
    h, w = float(shape.hidden_size), float(shape.width)
    if recipe.method != "gptq":
        return 200.0 * h * w  # no products; passes over the weights
    hessians = num_tokens * (h * h + w * w)
    factors = (h**3 + w**3) / 3
    first = len(shape.first_parts)
    solves = (1 + 2 * recipe.gptq.descent_sweeps) * (first * h * h * w + w * w * h)
    return hessians + factors + solves + 2 * num_tokens * shape.num_weights


def measure_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Return the operations per second of a matrix product [size, size] on a device.

    By default it is large enough that a GPU's launches do not count.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(size, size, device=device, generator=generator, dtype=torch.float32).to(
        dtype
    )  # ones take less power
    best = float("inf")
    for _ in range(4):  # the first makes the library ready
        started = time.perf_counter()
        y = x @ x
        float(y[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _num_weights(network: Network, shard: ShardPlan) -> int:
    """Return the weights of a layer beside its routed experts."""
    total = 0
    for size in network.layer_tensors(shard.layer_number).values():
        elements = 1
        for side in size:
            elements *= side
        total += elements
    return total
