"""JSON as the standard has it, within bounds, and such that it can be written again.

Python's own parser also takes NaN and Infinity, keys that repeat, numbers of any size, and half of a
surrogate pair, which no file could hold again; what is nested too deeply exhausts its stack.
"""

import json
import math
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""An object of JSON in a form that others decide, or of moe4's own on its way into a file or out of one.

What moe4 reads of the former, and all of the latter, has a typed value (schema.py).
"""

MAX_DEPTH = 64
MAX_DIGITS = 40  # tokenizers write 10**30 for a length without a limit


def parse_json(data: str | bytes) -> Any:
    """Parse JSON, of bytes in UTF-8. Raises ValueError with what is wrong."""
    try:
        value = json.loads(
            data.decode() if isinstance(data, bytes) else data,
            object_pairs_hook=_unique_keys,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    _check_values(value)
    return value


def is_encodable(text: str) -> bool:
    """Say whether text can be written as UTF-8; half of a surrogate pair cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:24]} is too large for a double")
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")


def _check_values(value: Any) -> None:
    """Raise ValueError for nesting that is too deep and for text that cannot be written."""
    waiting: list[tuple[Any, str, int]] = [(value, "", 1)]
    while waiting:
        item, place, depth = waiting.pop()
        if isinstance(item, str):
            if not is_encodable(item):
                raise ValueError(f"{place!r:.80} contains half of a surrogate pair, which is not text")
            continue
        if not isinstance(item, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise ValueError(f"{place!r:.80} is nested deeper than {MAX_DEPTH} levels")
        entries = item.items() if isinstance(item, dict) else enumerate(item)
        for key, child in entries:
            if isinstance(key, str) and not is_encodable(key):
                raise ValueError(f"the key {key!r:.80} contains half of a surrogate pair, which is not text")
            if isinstance(child, dict | list | str):
                waiting.append((child, f"{place}.{key}".lstrip("."), depth + 1))
