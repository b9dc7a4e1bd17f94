"""What a run begins its journal with."""

from typing import Any

from moe4 import __version__

ENVIRONMENT: dict[str, Any] = {
    "device": "cpu",
    "processor": "maker, AVX2",
    "products": "float32",
    "columns": "portable",
    "torch": "2",
    "transformers": "5",
    "variables": {},
    "threads": 2,
}
BEGIN: dict[str, Any] = {
    "moe4": __version__,
    "source": "0" * 64,
    "recipe": "0" * 64,
    "documents": None,
    "calibration": None,
    "probe": None,
    "side_files": {},
    "environment": ENVIRONMENT,
    "recipe_values": {},
    "versions": {},
    "source_files": {},
}
