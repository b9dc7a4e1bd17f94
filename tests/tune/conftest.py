from release_fixtures import (
    _one_thread,
    calibration,
    small_source,
)

__all__ = ["_one_thread", "calibration", "small_source"]
