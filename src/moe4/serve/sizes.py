"""Counts of tokens as vLLM's options write them."""

import re

from moe4.arguments import argument
from moe4.errors import ServeError

SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kKmMgGtT]?)")
POWERS = {"": 1, **{unit: 1000**n for n, unit in enumerate("kmgt", 1)}}
POWERS |= {unit: 1024**n for n, unit in enumerate("KMGT", 1)}


def read_size(text: str) -> int | None:
    """Return vLLM's human-readable size: 32k is 32,000, 32K 32,768; -1 for `auto`; None if it is none."""
    if text in ("-1", "auto"):
        return -1
    found = SIZE.fullmatch(text)
    if found is None or (not found[2] and "." in found[1]) or (found[2].isupper() and "." in found[1]):
        return None
    return int(float(found[1]) * POWERS[found[2]])


def read_tokens(text: str | int | None) -> int | None:
    """Return the number of `max_model_len`, which may be written as vLLM takes it. Raises ServeError."""
    if not isinstance(text, str):
        return text
    found = read_size(text)
    if found is None:
        raise ServeError(
            f"{argument('max_model_len', text)} is not a number of tokens: give 32768, 32k (32,000) or 32K"
        )
    return found
