"""`moe4 prove`: everything that is measured of a release, in one command."""

from moe4.prove.run import Proved, ProveOptions, describe, failures, prove

__all__ = ["ProveOptions", "Proved", "describe", "failures", "prove"]
