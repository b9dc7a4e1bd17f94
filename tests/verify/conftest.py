"""The fixtures of releases, for the tests here."""

from release_fixtures import (
    _one_thread,
    calibration,
    forks,
    fp8_source,
    release,
    small_source,
    source,
)

__all__ = ["_one_thread", "calibration", "forks", "fp8_source", "release", "small_source", "source"]
