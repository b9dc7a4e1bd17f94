"""Which modules a quantization config's `ignore` names, found in bounded time.

Its patterns come from whoever wrote the config, and one such as `(a+)+!` would keep Python's matcher busy
for years.
"""

import re
import signal
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from moe4.errors import CheckpointError

PATTERN = "re:"
FIRST_SECONDS = 2.0
SECONDS_PER_MODULE = 1e-3  # of the processor, for all patterns; those of moe4's releases take some 1e-5


class _TooSlow(Exception):  # noqa: N818
    """The time is over."""


def find_ignored(modules: Collection[str], ignore: Iterable[str]) -> set[str]:
    """Return the ignored modules, matched as by vLLM: a whole name, or a pattern from the start.

    Raises CheckpointError for a pattern that is none, or that takes too long.
    """
    found: set[str] = set()
    with _limited(FIRST_SECONDS + SECONDS_PER_MODULE * len(modules)):
        for entry in ignore:
            if not entry.startswith(PATTERN):
                found.update({entry}.intersection(modules))
                continue
            try:
                matches = re.compile(entry.removeprefix(PATTERN)).match
                found.update(module for module in modules if matches(module))
            except _TooSlow:
                raise CheckpointError(
                    f"quantization_config.ignore: {entry:.200} takes too long to match"
                ) from None
            except (re.error, OverflowError, RecursionError) as error:
                raise CheckpointError(
                    f"quantization_config.ignore: {entry:.200} is no regular expression: {error}"
                ) from None
    return found


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _TooSlow after so many seconds of the processor; only the main thread can be limited."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
