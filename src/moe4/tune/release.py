"""A release's shards once more, with other scales."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from moe4.checkpoint.header import Shard, iterate_bytes
from moe4.checkpoint.release_folder import ReleaseFolder
from moe4.checkpoint.report_file import FileEntry, Report
from moe4.checkpoint.shard import ShardWriter
from moe4.checkpoint.source import Checkpoint
from moe4.errors import CheckpointError
from moe4.files.durable import PARTIAL_SUFFIX, publish
from moe4.strict_json import JsonObject
from moe4.tune.scales import TunedScales


def copy_with_scales(
    release: Checkpoint, scales: TunedScales, folder: ReleaseFolder, report: Report
) -> JsonObject:
    """Write every shard into the folder, with the same layout; return what the report says of each.

    Raises CheckpointError if the release has other shards than its report says.
    """
    tuned = {name: functools.partial(part.rounded, expert) for name, part, expert in scales.rounded()}
    if set(release.shards) != set(report.release.shards):
        raise CheckpointError(f"{release.folder}: its report names other shards than its index; verify it")
    listing: JsonObject = {}
    temporary = [folder.work / f"{name}{PARTIAL_SUFFIX}" for name in release.shards]
    for path, (name, shard) in zip(temporary, release.shards.items(), strict=True):
        path.unlink(missing_ok=True)
        writer = _write(path, shard, tuned)
        listing[name] = FileEntry(num_bytes=writer.num_bytes, sha256=writer.sha256)
    for path, name in zip(temporary, release.shards, strict=True):
        publish(path, folder.folder / name)
    return listing


def _write(path: Path, shard: Shard, tuned: Mapping[str, Callable[[], Tensor]]) -> ShardWriter:
    writer = ShardWriter(path, [stored.spec for stored in shard.tensors.values()])
    for name, stored in shard.tensors.items():
        if name in tuned:
            writer.write(name, tuned[name]().cpu())
        else:
            writer.write_pieces(name, iterate_bytes(stored))
    writer.finish()
    return writer
