"""Sizes as Kubernetes, podman and vLLM write them."""

import re

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "m": 1}
SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kKmMgGtT]?)")
POWERS = {"": 1, **{unit: 1000**n for n, unit in enumerate("kmgt", 1)}}
POWERS |= {unit: 1024**n for n, unit in enumerate("KMGT", 1)}


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


def read_size(text: str) -> int | None:
    """Return vLLM's human-readable size: 32k is 32,000, 32K 32,768; -1 for `auto`; None if it is none."""
    if text in ("-1", "auto"):
        return -1
    found = SIZE.fullmatch(text)
    if found is None or (not found[2] and "." in found[1]) or (found[2].isupper() and "." in found[1]):
        return None
    return int(float(found[1]) * POWERS[found[2]])
