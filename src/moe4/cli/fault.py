"""Messages for exceptions that no command expected; their tracebacks are saved to a file."""

import os
import platform
import re
import sys
import tempfile
import traceback
from pathlib import Path

import moe4
from moe4.api.refusals import describe_refusal, is_refusal
from moe4.errors import FAULT_EXIT_CODE, INPUT_EXIT_CODE

SECRET = re.compile(r"(?i)(key|token|secret|password)")


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the line for an exception that escaped a command.

    For a bug of ours, the traceback is saved in the folder for temporary files.
    """
    if isinstance(error, OSError) and is_refusal(error):
        return INPUT_EXIT_CODE, f"error: {describe_refusal(error)}"
    kind = type(error).__name__
    what = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        what = what or "out of memory"
    elif isinstance(error, RecursionError):
        what = "something is nested too deeply"
    if len(what) > 200:
        what = what[:200] + " ..."
    where = f" in {_innermost(error)}"
    return FAULT_EXIT_CODE, (
        f"fault: {kind}{': ' * bool(what)}{what}{where}. This is a bug in moe4, not a mistake of yours. "
        f"{_save(error)} MOE4_TRACEBACK=1 prints the traceback."
    )


def _innermost(error: Exception) -> str:
    """Return `file:line` of the innermost place in moe4 in the traceback."""
    package = Path(moe4.__file__).parent
    found = "moe4"
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(package) and path.name not in ("main.py", "net.py"):
            found = f"{path.relative_to(package.parent)}:{line}"
    return found


def _save(error: Exception) -> str:
    """Write the traceback to a file; return a sentence that names it and says what to do."""
    versions = f"moe4 {moe4.__version__}, Python {platform.python_version()}, {platform.platform()}"
    text = f"{versions}\n{_arguments()}\n\n{''.join(traceback.format_exception(error))}"
    try:
        descriptor, name = tempfile.mkstemp(prefix="moe4-fault-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as failure:
        return f"Please report it; the traceback could not be saved ({failure.strerror})."
    return f"Please report it with {name}."


def _arguments() -> str:
    """Return the command line with secret values masked."""
    shown: list[str] = ["moe4"]
    hide = False
    for argument in sys.argv[1:]:
        option, equals, _ = argument.partition("=")
        is_secret = option.startswith("-") and SECRET.search(option)
        if hide:
            shown.append("***")
        else:
            shown.append(f"{option}=***" if is_secret and equals else argument)
        hide = bool(is_secret and not equals and not hide)
    return repr(shown)
