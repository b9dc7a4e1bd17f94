"""Where k2-tiny and its data lie: inside an installed package, beside it in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _find(packaged: str, beside: str) -> Path:
    inside = _PACKAGE / packaged
    return inside if inside.is_dir() else _PACKAGE.parent / beside


CHECKPOINT = _find("checkpoint", "k2-tiny")
DATA = _find("data", "data")

if __name__ == "__main__":  # python -m k2tiny.places
    print(CHECKPOINT)
