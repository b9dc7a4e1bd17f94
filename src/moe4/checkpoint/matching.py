"""Which modules a quantization config's `ignore` and `targets` name, found within bounds.

Its patterns come from whoever wrote the config, and one such as `(a+)+!` would keep Python's matcher busy
for years.
"""

import re
import time
from collections.abc import Collection, Iterable

from moe4.bounded import Bounds, OutOfBoundsError, map_bounded
from moe4.errors import CheckpointError

PATTERN = "re:"
FIRST_SECONDS = 2.0
SECONDS_PER_MODULE = 1e-3  # of the processor, for all patterns; those of moe4's releases take some 1e-5
LEAST_SECONDS = 0.01  # for a pattern when others have used the time up
NUM_BYTES = 1 << 28


def find_matching(modules: Collection[str], entries: Iterable[str], field: str = "ignore") -> set[str]:
    """Return the modules that are named, matched as by vLLM: a whole name, or a pattern from the start.

    field: of quantization_config, for messages. Raises CheckpointError for a pattern that is none, or that
    takes too long.
    """
    entries = list(entries)
    found = set(modules).intersection(entries)
    names, patterns = sorted(modules), [entry for entry in entries if entry.startswith(PATTERN)]
    if not patterns:
        return found
    seconds = FIRST_SECONDS + SECONDS_PER_MODULE * len(names)

    def bounds(_pattern: str) -> Bounds:
        """Return what is left of the time: the child's processor time begins at 0."""
        return Bounds(seconds=max(LEAST_SECONDS, seconds - time.process_time()), num_bytes=NUM_BYTES)

    try:
        for places in map_bounded(lambda pattern: _match(names, pattern, field), patterns, bounds):
            found.update(names[place] for place in places)
    except OutOfBoundsError as error:
        raise CheckpointError(
            f"quantization_config.{field}: {patterns[error.number]:.200} takes too long to match, "
            "or too much memory"
        ) from None
    return found


def _match(names: list[str], pattern: str, field: str) -> list[int]:
    """Return the places of the names that the pattern matches."""
    try:
        matches = re.compile(pattern.removeprefix(PATTERN)).match
        return [place for place, name in enumerate(names) if matches(name)]
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"quantization_config.{field}: {pattern:.200} is not a regular expression: {error}"
        ) from None
