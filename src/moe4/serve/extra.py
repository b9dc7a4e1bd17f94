"""Reading the options that the user gave for vLLM, which moe4 passes on as they are."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

from moe4.errors import ServeError
from moe4.vllm_facts import flags

KEY_FLAG = flags.API_KEY
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46  # of /proc/self/stat's fields behind the name (man 5 proc)


def find_value(extra: Sequence[str], *flags: str) -> str | None:
    """Return the first value given to one of `flags`, as `--flag value` or `--flag=value`."""
    for position, argument in enumerate(extra):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in flags:
            if equals:
                return value
            return extra[position + 1] if position + 1 < len(extra) else None
    return None


def find_whole(extra: Sequence[str], *flags: str, default: int = 1) -> int:
    """Return the whole number given to one of `flags`; vLLM itself refuses what is none."""
    text = find_value(extra, *flags)
    return int(text) if text and text.isdigit() else default


def take_keys(extra: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the options without `--api-key`, and the keys it gave: one or more; as in vLLM the last counts.

    Raises ServeError where it gives none; an empty list means that it is not there.
    """
    rest: list[str] = []
    keys: list[str] = []
    position = 0
    while position < len(extra):
        argument = extra[position]
        position += 1
        if not _is_key_flag(_name(argument)):
            rest.append(argument)
            continue
        _, equals, value = argument.partition("=")
        keys = [value] if equals else []
        while not equals and position < len(extra) and not extra[position].startswith("-"):
            keys.append(extra[position])
            position += 1
        if not all(keys) or not keys:
            raise ServeError(f"{KEY_FLAG} has no value; better set VLLM_API_KEY, which ps does not show")
    return tuple(rest), keys


def hide_arguments(values: Sequence[str]) -> None:
    """Overwrite these words of this process's own command line, which `ps` shows, where it can."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return
    start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
    if not 0 < start < end:
        return
    memory = (ctypes.c_char * (end - start)).from_address(start)
    hidden = {value.encode("utf-8", "surrogateescape") for value in values}
    position = 0
    for argument in memory.raw.split(b"\0"):
        word = argument if argument in hidden else argument.partition(b"=")[2]
        position += len(argument) + 1
        if word in hidden:
            memory[position - 1 - len(word) : position - 1] = [b"*"] * len(word)


def is_given(extra: Sequence[str], flag: str) -> bool:
    """Say whether the user gave `flag`, or its opposite `--no-...`, with hyphens or underscores."""
    return any(_name(argument) in (flag, _opposite(flag)) for argument in extra)


def is_on(extra: Sequence[str], flag: str, short: str) -> bool:
    """Say whether a switch is on: the last of `flag`, its short form and its opposite counts."""
    given = [_name(argument) for argument in extra if _name(argument) in (flag, short, _opposite(flag))]
    return bool(given) and given[-1] != _opposite(flag)


def _name(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _is_key_flag(name: str) -> bool:
    """Say whether argparse takes this for `--api-key`: it takes beginnings that fit no other option."""
    return KEY_FLAG.startswith(name) and len(name) > len("--api-")


def _opposite(flag: str) -> str:
    return f"--no-{flag.removeprefix('--')}"
