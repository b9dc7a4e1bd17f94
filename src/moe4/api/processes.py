"""Runs on several processes, and the set-up of a process that does nothing but a run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe4.quantize.transfer.ranks import Ranks


def find_ranks() -> "Ranks":
    """Return this process's place among those that torchrun started, for `quantize(ranks=...)`.

    `quantize` connects them. This raises nothing.

        >>> moe4.find_ranks().size
        1
    """
    from moe4.quantize.transfer.ranks import Ranks

    return Ranks.from_environment()


def own_process(ranks: "Ranks | None" = None) -> None:
    """Set up a process that does nothing but a run, as the command does; `quantize` itself never does this.

    Large freed blocks of memory return to the system at once, as the bound on memory assumes. With several
    ranks, SIGTERM raises RankError: a launcher sends it to the other ranks when one has died.
    ranks: `find_ranks()`; a single process if None. This raises nothing.

        >>> moe4.own_process()
    """
    from moe4.quantize.transfer.ranks import Ranks
    from moe4.quantize.transfer.ranks import own_process as own

    own(Ranks() if ranks is None else ranks)
