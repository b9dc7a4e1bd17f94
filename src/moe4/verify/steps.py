"""In which order a release is compared with a source whose shards are fetched: shard by shard."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moe4.checkpoint.source import Checkpoint

Matrix = tuple[str, tuple[int, ...]]
"""A quantized weight's name without its leaf, and its shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What is checked at a time. unread: tensors that only their SHA-256 is wanted of."""

    paths: tuple[Path, ...] = ()
    matrices: list[Matrix] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def steps_by_shard(
    source: Checkpoint, matrices: Iterable[Matrix], plain: Iterable[str], listed: Collection[str]
) -> list[Step]:
    """Return a step for each set of the source's shards that a tensor is read from, in their order.

    listed: the tensors whose SHA-256 the report has; those that no check reads are left for that.
    """
    steps: dict[tuple[Path, ...], Step] = {}
    read = set()

    def step_of(name: str) -> Step:
        read.add(name)
        paths = tuple(sorted(source.paths(name))) if name in source.tensors else ()
        return steps.setdefault(paths, Step(paths=paths))

    for matrix in matrices:
        step_of(f"{matrix[0]}weight").matrices.append(matrix)
    for name in plain:
        step_of(name).plain.append(name)
    for name in listed:
        if name in source.tensors and name not in read:
            step_of(name).unread.append(name)
    return [steps[paths] for paths in sorted(steps)]
