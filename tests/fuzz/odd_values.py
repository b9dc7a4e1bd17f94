"""Values that nobody expects, and edits that put them into JSON-like data."""

import json
from random import Random
from typing import Any

RAW = "@raw@"  # a string that begins so stands for the text behind it, in JSON that json.dumps cannot write

SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    7,
    1 << 31,
    (1 << 53) + 1,
    1 << 63,
    -(1 << 63) - 1,
    10**30,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    f"{RAW}1{'0' * 5000}",
    f"{RAW}1e999",
    "",
    " ",
    "0",
    "x",
    "true",
    "../x",
    "/nonexistent/x",
    "a\nb",
    "a\u0000b",
    "\x1b[31mred",
    "\ud800",
    "\u202eabc",
    "été 模型 🙂",
    "{{ x }}",
    "${HOME}",
    "x" * 5000,
)
CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [None], [{}], {"": None}, {"a": {"b": []}}, [1, "x"], [0] * 100)


def odd_value(rng: Random) -> Any:
    """Return a value of any kind."""
    if rng.random() < 0.03:
        return f"{RAW}{'[' * 3000}{']' * 3000}"
    return rng.choice(SCALARS) if rng.random() < 0.75 else json.loads(json.dumps(rng.choice(CONTAINERS)))


def near_value(value: Any, rng: Random) -> Any:
    """Return a value that is almost the given one: what gets past the first check."""
    if isinstance(value, bool):
        return rng.choice([not value, int(value), str(value)])
    if isinstance(value, int):
        choices = [
            value + 1,
            value - 1,
            -value,
            0,
            value * 2,
            value // 2,
            float(value),
            str(value),
            value << 20,
        ]
        return rng.choice([*choices, [value], value + 0.5])
    if isinstance(value, float):
        return rng.choice([-value, 0.0, value * 1e10, float("nan"), float("inf"), str(value), [value], None])
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        letter = rng.choice(["\n", "\u0000", "/", "..", "é", " ", "\ud800", '"', "%s", "{}", "x", "0", "-1"])
        choices = [
            value[:place] + letter + value[place:],
            value[:place],
            value * 2,
            value.upper(),
            value + " ",
        ]
        return rng.choice([*choices, [value], {"value": value}, value[::-1]])
    if isinstance(value, list):
        few = value[:-1] if value else [None]
        return rng.choice([few, value + value[:1], value[::-1], {"0": value}, [value], [*value, None]])
    if isinstance(value, dict):
        return rng.choice([list(value), list(value.items()), [value], {**value, "extra": 1}, {}])
    return odd_value(rng)


def places(data: Any, limit: int = 4000) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside data, outermost first."""
    found: list[tuple[Any, Any]] = []
    waiting = [data]
    while waiting and len(found) < limit:
        item = waiting.pop(0)
        keys: Any = ()
        if isinstance(item, dict):
            keys = list(item)
        elif isinstance(item, list):
            keys = range(len(item))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], dict | list):
                waiting.append(item[key])
    return found


def edit(data: Any, rng: Random) -> Any:
    """Change one thing in JSON-like data, which may be changed in place; return the result."""
    if rng.random() < 0.02:
        return odd_value(rng)
    found = places(data)
    if not found:
        return odd_value(rng)
    # Uniform over depths, not over values: a long list would drown everything else.
    shallow = found[: max(1, len(found) // 20)]
    container, key = rng.choice(rng.choice([shallow, found]))
    action = rng.random()
    if action < 0.35:
        container[key] = near_value(container[key], rng)
    elif action < 0.65:
        container[key] = odd_value(rng)
    elif action < 0.8:
        del container[key]
    elif action < 0.9:
        other_container, other_key = rng.choice(found)
        try:
            container[key] = json.loads(json.dumps(other_container[other_key], default=str))
        except (ValueError, RecursionError):  # aliases may hold themselves
            container[key] = odd_value(rng)
    elif isinstance(container, dict):
        value = container.pop(key)
        container[rng.choice(["", str(key) + "x", str(key).upper(), "a\nb", "\ud800", "__class__"])] = value
    else:
        container.insert(rng.randrange(len(container) + 1), odd_value(rng))
    return data


def to_json(data: Any, rng: Random, **options: Any) -> bytes:
    """Write data as JSON that may break JSON's rules: NaN, huge numbers, a key twice, half a surrogate."""
    text = json.dumps(data, **options)
    while (begin := text.find(f'"{RAW}')) >= 0:
        end = text.index('"', begin + 1)
        text = text[:begin] + text[begin + 1 + len(RAW) : end] + text[end + 1 :]
    if isinstance(data, dict) and data and rng.random() < 0.03:
        key = json.dumps(str(rng.choice(list(data))))
        text = f"{{{key}: {json.dumps(rng.choice([None, 1, 'x', []]))}, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")
