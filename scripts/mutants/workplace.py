"""A copy of the project in which files may be broken, and the processes that test it."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

CRASHED = 70
MEMORY_BYTES = 12 << 30  # a mutant may ask for anything
# The editable install's finder comes before sys.path; the copy's modules must come before both.
SITE = """\
import os, sys
sys.meta_path[:] = [found for found in sys.meta_path if "Editable" not in type(found).__name__
                    and "Redirect" not in type(found).__name__]
if "COVERAGE_PROCESS_START" in os.environ:
    import coverage
    coverage.process_startup()
"""


def copy_project(source: Path, target: Path) -> None:
    """Copy what git knows of a checkout, and its built extensions, over what is at `target`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    built = [file for file in distribution("moe4").files or [] if file.suffix == ".so"]
    if not built:
        raise SystemExit("moe4's extensions are not built: run `make setup`")
    for file in built:
        shutil.copy2(str(file.locate()), target / "src" / file.parent)
    (target / "site").mkdir(exist_ok=True)
    (target / "site" / "sitecustomize.py").write_text(SITE)


def environment(source: Path, target: Path) -> dict[str, str]:
    """Return the environment of processes that import moe4 from the copy `target` of `source`."""
    folders = [target / "site", target / "src", target / "reference", os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, map(str, folders))),
        "PYTHONPYCACHEPREFIX": str(target / "compiled"),
        "MOE4_SHARED": os.environ.get("MOE4_SHARED") or str(source.parent / "shared"),
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",  # so that tests of GPU kernels need no process of their own
    }


def fork(work: Callable[[], int], output: Path, limit_seconds: float) -> int | None:
    """Return what `work` gives in a child whose output goes to a file; None if the limit stopped it."""
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            code = work()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + limit_seconds
    status: int | None = None
    while status is None and time.monotonic() < end:
        found, waited = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(waited) if found else None
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # what it started, too
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return status
