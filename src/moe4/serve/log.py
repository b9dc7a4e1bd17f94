"""Find, in vLLM's log, the line that says why it stopped."""

import re

# "(EngineCore pid=12) ERROR 11-23 14:41:50 [core.py:1510] " and the like, in front of the message.
_PREFIX = re.compile(r"^(?:\([^)]*\) ?)?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt|Exit)\b(?:: (?P<message>.*))?$")
_USAGE = re.compile(r"^vllm\b[\w .-]*: error: ")
# Lines of the outer processes that only say that an inner one failed.
_SECOND_HAND = (
    "See root cause above",
    "See stack trace",
    "EngineDeadError",
    "Worker proc",
    "CancelledError",
    "Engine core initialization failed",
    "WorkerProc initialization failed",
)


def last_error(log: str) -> str | None:
    """Return the last first-hand error of a log, without vLLM's prefix, or None where it names no error.

    A pydantic error spreads over lines; what counts is the line under its head.
    """
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    found: str | None = None
    for number, line in enumerate(lines):
        if _USAGE.match(line):
            found = line
        elif _EXCEPTION.match(line) and not any(phrase in line for phrase in _SECOND_HAND):
            found = line
            if "validation error" in line:
                detail = next(
                    (each for each in lines[number + 1 :] if each.startswith("Value error, ")), line
                )
                found = detail.removeprefix("Value error, ").split(" [type=")[0]
    return found
