"""What a program that owns its process may do before a run, and several processes on one run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe4.quantize.transfer.ranks import Ranks


def find_ranks() -> "Ranks":
    """Return this process's place among those that torchrun started, for `quantize(ranks=...)`."""
    from moe4.quantize.transfer.ranks import Ranks

    return Ranks.from_environment()


def own_process(ranks: "Ranks | None" = None) -> None:
    """Set up a process that does nothing but a run, as the command does; `quantize` itself never does.

    Large blocks of memory go back to the system as soon as they are free, which the bound on memory counts
    with. Among several ranks SIGTERM, by which a launcher ends the others when one has died, is a RankError.
    """
    from moe4.quantize.transfer.ranks import Ranks
    from moe4.quantize.transfer.ranks import own_process as own

    own(Ranks() if ranks is None else ranks)
