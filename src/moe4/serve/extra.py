"""Reading the options that the user gave for vLLM, which moe4 passes on as they are."""

from collections.abc import Sequence


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


def is_given(extra: Sequence[str], flag: str) -> bool:
    """Say whether the user gave `flag`, or its opposite `--no-...`, with hyphens or underscores."""
    return any(_name(argument) in (flag, _opposite(flag)) for argument in extra)


def is_on(extra: Sequence[str], flag: str, short: str) -> bool:
    """Say whether a switch is on: the last of `flag`, its short form and its opposite counts."""
    given = [_name(argument) for argument in extra if _name(argument) in (flag, short, _opposite(flag))]
    return bool(given) and given[-1] != _opposite(flag)


def _name(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _opposite(flag: str) -> str:
    return f"--no-{flag.removeprefix('--')}"
