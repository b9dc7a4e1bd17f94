"""Run what strangers wrote, a chat template or a pattern, within bounds of time and memory.

It runs in a forked child, where the kernel ends it: neither a loop inside a C function nor a string of many
gigabytes can be stopped from within Python. A fork costs some milliseconds, so one child works through many
items.
"""

import faulthandler
import gc
import json
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from moe4 import errors
from moe4.errors import Moe4Error
from moe4.strict_json import JsonObject

Item = TypeVar("Item")
ANSWER_SHARE = 4  # an answer has at most this part of the bytes that its item may take
WAIT_FACTOR = 30  # seconds of the clock to each of the processor's: a machine may be busy
PARALLELISM = "TOKENIZERS_PARALLELISM"  # the threads of tokenizers do not survive a fork


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What one item may take: seconds of the processor, and bytes of memory beyond those already in use."""

    seconds: float
    num_bytes: int


class OutOfBoundsError(Exception):
    """An item took too much. `number`: which one. The message is the end of a clause that says how."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def map_bounded(
    function: Callable[[Item], Any], items: Sequence[Item], bounds: Callable[[Item], Bounds]
) -> Generator[Any, None, None]:
    """Yield `function(item)` for each item, computed in a child; results are what JSON can hold.

    What the function writes to the standard streams is lost, and so is what it changes.
    Raises OutOfBoundsError, and whatever Moe4Error the function raises.
    """
    reading, writing = os.pipe()
    child = _fork()
    if child == 0:
        os.close(reading)
        _work(function, items, bounds, writing)
    os.close(writing)
    status = None
    try:
        with os.fdopen(reading, "rb") as answers:
            for number, item in enumerate(items):
                limits = bounds(item)
                most = limits.num_bytes // ANSWER_SHARE
                answer = answers.readline(most)
                if len(answer) == most:
                    raise OutOfBoundsError(number, f"gives more than {most >> 20} MiB")
                if not answer.endswith(b"\n"):
                    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    raise OutOfBoundsError(number, _explain(status, limits))
                yield _unpack(json.loads(answer), number, limits)
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _fork() -> int:
    """Return the child's process id, or 0 in the child, which uses none of the parent's threads."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child and before is None:
        del os.environ[PARALLELISM]
    elif child and before is not None:
        os.environ[PARALLELISM] = before
    return child


def _work(
    function: Callable[[Item], Any],
    items: Sequence[Item],
    bounds: Callable[[Item], Bounds],
    writing: int,
) -> NoReturn:
    """Do the child's part: a line of JSON for each item, until one fails."""
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        gc.freeze()  # the parent's objects are the parent's to end
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)  # a library that runs out of memory says so there
        with os.fdopen(writing, "wb") as answers:
            for item in items:
                answer = _answer(function, item, bounds(item))
                answers.write(json.dumps(answer).encode() + b"\n")
                answers.flush()
                if "value" not in answer:
                    break
    finally:
        os._exit(0)


def _answer(function: Callable[[Item], Any], item: Item, limits: Bounds) -> JsonObject:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = _address_space() + limits.num_bytes
    try:
        resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))
        signal.setitimer(signal.ITIMER_PROF, limits.seconds)
        signal.setitimer(signal.ITIMER_REAL, limits.seconds * WAIT_FACTOR)
        return {"value": function(item)}
    except MemoryError:
        return {"memory": True}
    except Moe4Error as error:
        return {"error": type(error).__name__, "message": str(error)}
    except BaseException:
        return {"fault": traceback.format_exc()}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _address_space() -> int:
    """Return the bytes of this process's address space."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * resource.getpagesize()


def _unpack(answer: JsonObject, number: int, limits: Bounds) -> Any:
    if "value" in answer:
        return answer["value"]
    if "memory" in answer:
        raise OutOfBoundsError(number, _too_much_memory(limits))
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    raise RuntimeError(f"in a child process:\n{answer['fault']}")


def _explain(status: int, limits: Bounds) -> str:
    """Return why a child ended, by its exit status."""
    if status == -signal.SIGPROF:
        return f"takes more than {limits.seconds:.0f} s of the processor"
    if status == -signal.SIGALRM:
        return f"does not end within {limits.seconds * WAIT_FACTOR:.0f} s"
    if status in (-signal.SIGABRT, -signal.SIGKILL):  # of a library without memory, and by the system
        return _too_much_memory(limits)
    name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    return f"ends the process that runs it ({name})"


def _too_much_memory(limits: Bounds) -> str:
    return f"takes more than {limits.num_bytes >> 20} MiB of memory"
