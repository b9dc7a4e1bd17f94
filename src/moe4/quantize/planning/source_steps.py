"""Which shards of the source each shard of the release is made of."""

from pathlib import Path

from moe4.checkpoint.source import Checkpoint
from moe4.model.architecture import Network
from moe4.quantize.planning.release_plan import ReleasePlan, ShardPlan


def source_steps(
    checkpoint: Checkpoint, network: Network, plan: ReleasePlan, *, embeds: bool, has_probe: bool
) -> list[list[Path]]:
    """Return the paths that each shard of the plan reads, in the order of their first tensors.

    embeds: the run passes tokens through the layers. has_probe: it also asks for the likeliest next ones.
    """
    steps = []
    for shard in plan.shards:
        names = [*_beside(network, shard, embeds=embeds, has_probe=has_probe), *shard.source_names]
        paths = [path for name in names for path in sorted(checkpoint.paths(name))]
        steps.append(list(dict.fromkeys(paths)))
    return steps


def _beside(network: Network, shard: ShardPlan, *, embeds: bool, has_probe: bool) -> list[str]:
    """Return what a layer's step reads that is not of the layer: the embeddings, the last norm, the head."""
    found = []
    if shard.layer == 0 and embeds:
        found.append(network.embedding_name)
    if shard.layer == network.num_layers - 1 and has_probe:
        found += [network.norm_name, network.head_name]
    return found
