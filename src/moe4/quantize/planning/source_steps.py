"""In which order a run reads the source's shards, for each shard of the release."""

from itertools import groupby
from pathlib import Path

from moe4.checkpoint.source import Checkpoint
from moe4.model.outline import Outline
from moe4.quantize.planning.release_plan import ReleasePlan, ShardPlan


def source_steps(
    checkpoint: Checkpoint, network: Outline, plan: ReleasePlan, *, embeds: bool, has_probe: bool
) -> list[list[Path]]:
    """Return the paths that each shard of the plan reads, in order, a path once for reads that follow it.

    embeds: the run passes tokens through the layers. has_probe: it also asks for the likeliest next ones.
    """
    steps = []
    for shard in plan.shards:
        names = _names(network, shard, embeds=embeds, has_probe=has_probe)
        there = (name for name in names if name in checkpoint.tensors)
        paths = (path for name in there for path in sorted(checkpoint.paths(name)))
        steps.append([path for path, _ in groupby(paths)])
    return steps


def _names(network: Outline, shard: ShardPlan, *, embeds: bool, has_probe: bool) -> list[str]:
    """Return the tensors that a step reads: a layer without its routed experts, then these."""
    if shard.layer is None:
        return shard.copied
    is_first, is_last = shard.layer == 0, shard.layer == network.num_layers - 1
    embedding = [network.embedding_name]
    beside = {*network.layer_tensors(shard.layer), *shard.copied}
    experts = [name for name in shard.source_names if name not in beside]
    return [
        *(embedding if is_first and embeds else ()),
        *network.layer_tensors(shard.layer),
        *shard.copied,
        *(embedding if is_first and has_probe else ()),
        *experts,
        *([*network.names.ending, network.head_name] if is_last and has_probe else ()),
    ]
