"""`moe4 prove`: everything that is measured of a release, in one command."""

from moe4.prove.options import ProveOptions
from moe4.prove.run import Proved, describe, failures, prove

__all__ = ["ProveOptions", "Proved", "describe", "failures", "prove"]
