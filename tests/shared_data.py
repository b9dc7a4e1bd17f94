"""The folder of public data and schemas beside a checkout: Kimi-K2's config, KServe's CRDs.

MOE4_SHARED names it; without, it is `shared` beside the project. Tests that need it are skipped where
it is absent.
"""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared"


def find_shared(*parts: str) -> Path | None:
    """Return a path in the shared folder, or None where it is not there."""
    path = Path(os.environ.get("MOE4_SHARED") or _DEFAULT).joinpath(*parts)
    return path if path.exists() else None


def shared_path(*parts: str) -> Path:
    """Return a path in the shared folder; skip the test where it is not there."""
    path = find_shared(*parts)
    if path is None:
        pytest.skip(f"the shared folder (MOE4_SHARED, or ../shared) has no {'/'.join(parts)}")
    return path
