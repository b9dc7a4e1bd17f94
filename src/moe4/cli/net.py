"""Run a command, and turn any exception that escapes it into one line on stderr and an exit code."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

from moe4 import extras
from moe4.cli.streams import OutputLost, standard_streams
from moe4.errors import INPUT_EXIT_CODE, INTERRUPTED_EXIT_CODE, PIPE_EXIT_CODE, Moe4Error
from moe4.escape import visible

IMPORT_SECONDS = 0.5
COMPLETION_VARIABLE = "_MOE4_COMPLETE"
LONGEST_LINE = 1000  # of a message, which may quote a value of any length

Handler: TypeAlias = Callable[[int, FrameType | None], Any] | signal.Handlers


class Terminated(BaseException):
    """SIGTERM has come. What is under way ends in order, then the process dies of the signal."""


def run() -> int:
    """Run the command line; return the exit code."""
    with _hearing_signals():
        try:
            with standard_streams():
                return _run()
        except OutputLost as lost:
            if isinstance(lost.reason, BrokenPipeError):
                return PIPE_EXIT_CODE
            say(f"error: standard output cannot be written: {lost.reason.strerror}")
            return INPUT_EXIT_CODE
        except KeyboardInterrupt:
            return _interrupted()
        except Terminated:
            return _die_of(signal.SIGTERM)


def _run() -> int:
    """Run the command that the arguments name; return the exit code. Raises OutputLost."""
    try:
        os.getcwd()  # noqa: PTH109  # torch's libraries end a process that has none
        return _run_command()
    except (KeyboardInterrupt, Terminated, OutputLost):
        raise
    except SystemExit as stop:  # a library's
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        say(f"error: {stop.code}")
        return INPUT_EXIT_CODE
    except Moe4Error as error:
        _show_traceback(error)
        say(f"error: {error}")
        return error.exit_code
    except Exception as error:
        from moe4.cli.fault import explain

        _show_traceback(error)
        missing = extras.name_missing(error) if isinstance(error, ImportError) else None
        code, text = (missing.exit_code, f"error: {missing}") if missing else explain(error)
        say(text)
        return code


def _run_command() -> int:
    """Parse the arguments and call the command.

    Does what typer's app() does, without its handling of broken pipes, interrupts and usage errors.
    """
    import typer
    from typer.main import get_command

    from moe4.cli.app import USAGE_ERROR, app

    if COMPLETION_VARIABLE in os.environ:  # the shell asks what could come next
        app(prog_name="moe4")
    try:
        with get_command(app).make_context("moe4", sys.argv[1:]) as context:
            context.command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return _interrupted()
    except USAGE_ERROR as error:
        if len(sys.argv) == 1:
            error.show()  # the help
        else:
            place = error.ctx.command_path if error.ctx else "moe4"
            what = error.format_message().rstrip(".")
            say(f"error: {what}{' See' if what.endswith('?') else '; see'} {place} --help")
        return INPUT_EXIT_CODE
    return 0


def say(text: str) -> None:
    """Print `moe4: text` as one line on stderr; escape control characters, cut long lines in the middle."""
    line = visible(text.strip())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE - 300]} [...] {line[-300:]}"
    print(f"moe4: {line}", file=sys.stderr, flush=True)  # noqa: T201


def _interrupted() -> int:
    """Say so and return the exit code. From here on, Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    say("interrupted")
    return INTERRUPTED_EXIT_CODE


def _die_of(number: int) -> int:
    """End this process as a signal does that nobody hears."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # not reached, unless the signal is blocked


@contextmanager
def _hearing_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C and Terminated on SIGTERM, so that scratch folders are removed.

    Not inside an import, which libraries would report as failed: one that runs gets IMPORT_SECONDS to finish;
    then the process ends at once. A second SIGTERM ends it, too. Signals that are ignored, as Ctrl-C is by a
    job in the background, stay so.
    """
    since: float | None = None
    heard = signal.SIGINT

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal since, heard
        if number != signal.SIGALRM:
            heard = signal.Signals(number)
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                break
            frame = frame.f_back
        if frame is None:
            since = None
            if heard is signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise Terminated
        since = since or time.monotonic()
        if time.monotonic() - since > IMPORT_SECONDS:
            if heard is signal.SIGTERM:
                _die_of(signal.SIGTERM)
            os.write(2, b"moe4: interrupted\n")
            os._exit(INTERRUPTED_EXIT_CODE)
        signal.signal(signal.SIGALRM, hear)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    usual: dict[signal.Signals, Handler] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: found for number, found in usual.items() if signal.getsignal(number) is found}
    for number in before:
        signal.signal(number, hear)
    yield
    for number, found in before.items():
        if signal.getsignal(number) is hear:
            signal.signal(number, found)


def _show_traceback(error: BaseException) -> None:
    """Print the traceback if MOE4_TRACEBACK=1 is set."""
    if os.environ.get("MOE4_TRACEBACK", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
