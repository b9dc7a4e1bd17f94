"""How messages name an argument: as the keyword of a function, or as the option of a command.

A message is written once, with `argument("calibration", "FILE.jsonl")` in it. Through `import moe4` it reads
`calibration="FILE.jsonl"`, and on the command line `--calibration FILE.jsonl`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

# Most options are the keyword with hyphens.
OPTIONS = {
    "check": "--no-probe",
    "license_name": "--license",
    "max_sequence_tokens": "--sequence-length",
    "sequence_tokens": "--sequence-length",
    "tasks": "--task",
    "thresholds": "--threshold",
    "time_it": "--time",
    "tolerations": "--toleration",
    "use_cache": "--cached",
}

_as_options = False


@contextlib.contextmanager
def named_as_options() -> Iterator[None]:
    """Name arguments as options: a command runs in this process. It holds in all threads."""
    global _as_options
    before, _as_options = _as_options, True
    try:
        yield
    finally:
        _as_options = before


def are_named_as_options() -> bool:
    """Return whether a command runs in this process; one that it starts needs to be told."""
    return _as_options


def option(name: str) -> str:
    """Return the option that stands for a keyword."""
    return OPTIONS.get(name, f"--{name.replace('_', '-')}")


def argument(name: str, value: str | Path | float | None = None) -> str:
    """Return an argument as the user writes it: its name alone, or with a value; True sets a switch."""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    if _as_options:
        return option(name) if value is None or value is True else f"{option(name)} {shown}"
    if value is None:
        return name
    return f'{name}="{shown}"' if isinstance(value, str | Path) else f"{name}={shown}"


def called(function: str) -> str:
    """Return where a wrong argument was given: in the call of a function, or among a command's options."""
    return "options" if _as_options else f"{function}()"
