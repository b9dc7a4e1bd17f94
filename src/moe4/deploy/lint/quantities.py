"""Sizes as Kubernetes and podman write them."""

import re

UNITS = {"": 1, "m": 1e-3, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
# Podman, docker and compose: powers of 1024 whatever the case, with `b` or `ib` behind the letter or nothing.
HOST_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_quantity(text: str, *, on_host: bool = False) -> int | None:
    """Return a Kubernetes quantity, or a container engine's, in bytes; None if it is none."""
    found = re.fullmatch(r"([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})([A-Za-z]*)", text.strip())
    if not found:
        return None
    unit: float | None = UNITS.get(found[2])
    if on_host:
        unit = HOST_UNITS.get(found[2].lower().removesuffix("b").removesuffix("i"))
    return int(float(found[1]) * unit) if unit is not None else None


def is_less(text: str, limit: int, *, on_host: bool) -> bool:
    """Say whether a quantity is less than so many bytes; not if it is none."""
    size = parse_quantity(text, on_host=on_host)
    return size is not None and size < limit
