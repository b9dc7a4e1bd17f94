"""Libraries that only some kinds of calibration data need."""

import importlib
import importlib.util
from typing import Any

from moe4.errors import MissingDependencyError

EXTRA = "data"


def require(library: str, what: str) -> Any:
    """Return a library that reads `what`. Raises MissingDependencyError."""
    if importlib.util.find_spec(library) is None:
        raise MissingDependencyError(f"{what} needs {library}: pip install 'moe4[{EXTRA}]'")
    return importlib.import_module(library)
