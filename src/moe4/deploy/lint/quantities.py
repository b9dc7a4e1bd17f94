"""Sizes as Kubernetes and podman write them."""

import re

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "m": 1}


def parse_quantity(text: str) -> int | None:
    """Return a Kubernetes or podman quantity in bytes; None if it is none."""
    found = re.fullmatch(r"([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})([A-Za-z]*)", text.strip())
    if not found:
        return None
    unit = (
        found[2]
        if found[2] in UNITS
        else {"g": "Gi", "gb": "Gi", "m": "Mi", "mb": "Mi"}.get(found[2].lower())
    )
    return int(float(found[1]) * UNITS[unit]) if unit is not None else None
