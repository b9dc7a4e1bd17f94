"""One case in a process of its own: limits on memory, files and time, and no way out of its folder."""

import contextlib
import errno
import faulthandler
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants

MEMORY_BYTES = 1 << 30  # beyond what the process has when it begins
FILE_BYTES = 256 << 20
FUZZER_EXIT_CODE = 99  # a mistake in the fuzzer itself
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.rename",
    "os.link",
    "os.symlink",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a case ended. code: the exit code, negative for a signal, None if it had to be killed."""

    code: int | None
    output: str
    messages: str
    stack: str
    saved: str
    outside: str
    left_over: tuple[str, ...]


def call_main(arguments: Sequence[str]) -> int:
    """Run the command line in this process; return its exit code."""
    from moe4.cli.main import main

    before = sys.argv
    sys.argv = ["moe4", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main() has returned")


def call_limited(arguments: Sequence[str]) -> int:
    """Run the command line with a limit on what it may write; its inputs may be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    return call_main(arguments)


def run_confined(folder: Path, work: Callable[[], int], seconds: float) -> Ending:
    """Fork, run `work` with folder/files as the working directory, and wait so long at most."""
    for name in ("files", "tmp", "home"):
        (folder / name).mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        _child(folder, work, seconds)
    watch = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        in_time = bool(poll.poll(seconds * 1000))
        if not in_time:
            os.kill(pid, signal.SIGUSR1)  # what it is at goes into the ending's stack
            poll.poll(1000)
    finally:
        os.close(watch)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return Ending(
        code=os.waitstatus_to_exitcode(status) if in_time else None,
        output=_read(folder / "output"),
        messages=_read(folder / "messages"),
        stack=_read(folder / "stack"),
        saved="".join(_read(path) for path in sorted((folder / "tmp").glob("moe4-fault-*"))),
        outside=_read(folder / "outside"),
        left_over=tuple(
            str(path) for path in (folder / "files").rglob("*.partial") if ".moe4" not in path.parts
        ),
    )


def _read(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(8 << 20)


def _child(folder: Path, work: Callable[[], int], seconds: float) -> None:
    """Be the case: never returns."""
    code = FUZZER_EXIT_CODE
    try:
        os.setsid()
        for number, name in ((0, os.devnull), (1, "output"), (2, "messages")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(folder / name, flags, 0o644), number)
        os.chdir(folder / "files")
        _set_environment(folder)
        stack = (folder / "stack").open("w")
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack)  # a watchdog's dump can crash what it looks at
        _confine(folder)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set_environment(folder: Path) -> None:
    for name in [*os.environ]:
        if name.startswith(("MOE4_", "VLLM_", "HF_", "RANK", "WORLD_SIZE")):
            del os.environ[name]
    os.environ.update(
        HOME=str(folder / "home"), XDG_CACHE_HOME=str(folder / "home"), TMPDIR=str(folder / "tmp")
    )
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # else it asks an unreachable hub for half a minute
    tempfile.tempdir = None
    sys.dont_write_bytecode = True  # beside modules, if they are not compiled yet
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _confine(folder: Path) -> None:
    """Refuse writes outside the folder, other programs, and connections that leave this machine."""
    record = os.open(folder / "outside", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def is_inside(path: Any) -> bool:
        text = os.fsdecode(path)
        folder_of_it, name = os.path.split(text)
        real = os.path.realpath(f"{os.path.realpath(folder_of_it)}/{name}")
        return real == os.devnull or Path(real).is_relative_to(folder)

    def refuse(what: str) -> None:
        os.write(record, f"{what}\n".encode(errors="backslashreplace"))
        raise PermissionError(errno.EPERM, "the fuzzer allows no such thing", what)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and flags & WRITES and not is_inside(path):
                refuse(f"write to {os.fsdecode(path)}")
        elif event in CHANGES and (event == "os.truncate" or arguments[-1] == -1):
            # Not what is relative to an open folder: only shutil.rmtree does that, of a folder it was given.
            paths = [item for item in arguments[:2] if isinstance(item, str | bytes | os.PathLike)]
            for path in paths[-1:] if event == "os.symlink" else paths:
                if not is_inside(path):
                    refuse(f"{event} of {os.fsdecode(path)}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            if arguments[1][0] not in ("127.0.0.1", "::1"):
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        elif event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", "::1", None):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), os.fsdecode(arguments[0] or ""))

    sys.addaudithook(hear)


def remove(folder: Path) -> None:
    """Remove a case's folder, whatever names it holds."""
    shutil.rmtree(folder, ignore_errors=True)
