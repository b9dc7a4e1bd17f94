"""Run quantizations in forked children of one process, so that torch is imported once: a line of JSON each.

A request holds `out`, `source`, `calibration`, `recipe` and `resume`. As many ranks as its `size` are forked.
With `few_prompts` they ask the probe's questions of a few prompts (few_prompts.py).
`faults` maps a rank to what befalls it (see `arm`), `overrides` to what it is asked instead; rank 0 is killed
after `kill_after` seconds; when only the ranks in `left_over` are left, they are. The answer is {"ranks":
[{"code", "log"}], "seconds"}: exit codes (negative: the signal that ended it) and what each rank printed,
with an error as `Type: message`.
"""

import contextlib
import errno
import io
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers.models.deepseek_v3.modeling_deepseek_v3  # noqa: F401 (else each child would import it)
from few_prompts import ask_few_prompts

from moe4.checkpoint import journal
from moe4.errors import Moe4Error
from moe4.files import durable
from moe4.quantize.layer.host_solver import HostSolver
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.run import commit, commit_queue
from moe4.quantize.run import pipeline as run
from moe4.quantize.transfer import boundary, ranks
from moe4.quantize.transfer import device_memory as gpu_memory
from moe4.recipe import Recipe

Fault = dict[str, Any]


def count_down(count: int, then: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `then` when it is called for the count-th time (from 0)."""
    left = [count]

    def tick() -> None:
        if left[0] == 0:
            then()
        left[0] -= 1

    return tick


def arm(fault: Fault) -> None:
    """Prepare this process for what is to befall it."""

    def signal_self() -> None:
        os.kill(os.getpid(), getattr(signal, fault.get("signal", "SIGKILL")))

    def after(owner: Any, name: str, tick: Callable[[], None]) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            result = real(*arguments, **keywords)
            tick()
            return result

        setattr(owner, name, wrapped)

    def no_room() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if "durable_step" in fault:  # just after the n-th rename or journal line; 0 is before the first
        tick = count_down(fault["durable_step"], signal_self)
        tick()
        for module in (commit, durable, boundary):
            after(module, "publish", tick)
        after(journal, "append_line", tick)
    if "expert" in fault:  # after the n-th expert of this rank
        after(HostSolver, "solve", count_down(fault["expert"], signal_self))
    if "no_room" in fault:  # the n-th call of the system that takes space finds none
        tick = count_down(fault["no_room"], no_room)
        for name in ("posix_fallocate", "pwrite", "fsync"):
            after(os, name, tick)
    if "file_bytes" in fault:  # no file may be longer
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_bytes"], fault["file_bytes"]))
    if fault.get("as_on_gpus"):  # activations in memory, commits and what comes from other ranks in threads
        gpu_memory.free_bytes = lambda _: 1 << 40
        commit.commits_behind = commit_queue.commits_behind = lambda _: True
        ranks.Ranks.receives_ahead = property(lambda _: True)
        HostSolver.at_once = property(lambda _: 2)
    if "timeout" in fault:
        ranks.TIMEOUT = timedelta(seconds=fault["timeout"])


def quantize(request: dict[str, Any]) -> None:
    """Do one rank's part."""
    rank_set = ranks.Ranks.from_environment()
    ranks.own_process(rank_set)
    run.quantize(
        run.Request(
            source=Path(request["source"]),
            out=Path(request["out"]),
            recipe=Recipe.from_dict(request["recipe"]),
            calibration=Path(request["calibration"]),
            resume=request.get("resume", False),
        ),
        ProgressReporter(say=_say),
        rank_set,
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def child(request: dict[str, Any], rank: int, size: int, port: int, log: Path) -> None:
    """Be a rank: never returns."""
    descriptor = os.open(log, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        if size > 1:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            )
        if request.get("few_prompts"):
            ask_few_prompts()
        arm(request.get("faults", {}).get(str(rank), {}))
        overrides = request.get("overrides", {}).get(str(rank), {})
        quantize({**request, **overrides})
    except Moe4Error as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Fork the ranks, wait for them, tell what became of each."""
    size = request.get("size", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [Path(f"{request['out']}.rank{rank}.log") for rank in range(size)]
    for log in logs:
        log.write_bytes(b"")
    started = time.monotonic()
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            child(request, rank, size, port, logs[rank])
        pids.append(pid)
    if "kill_after" in request:
        time.sleep(request["kill_after"])
        os.kill(pids[0], signal.SIGKILL)  # not waited for yet, so the number is still its own
    results: dict[int, int] = {}
    while len(results) < size:
        for rank, pid in enumerate(pids):
            if rank not in results:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    results[rank] = os.waitstatus_to_exitcode(status)
        stopped = [rank for rank in range(size) if rank not in results]
        if stopped == request.get("left_over"):  # ranks that a fault has stopped
            for rank in stopped:
                os.kill(pids[rank], signal.SIGKILL)
        time.sleep(0.002)
    return {
        "seconds": time.monotonic() - started,
        "ranks": [{"code": results[rank], "log": logs[rank].read_text()} for rank in range(size)],
    }


def reply(line: str) -> None:
    """Write a line to whoever asked."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    reply("ready")
    for number, line in enumerate(sys.stdin):
        if number == 0:  # fill what transformers and others keep, for the children to inherit
            request = json.loads(line)
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                quantize({**request, "out": folder})
        reply(json.dumps(answer(json.loads(line))))
