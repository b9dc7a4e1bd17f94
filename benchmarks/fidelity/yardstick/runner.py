"""Cells, each in a process of its own, several at a time, the most important first."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fidelity.yardstick.cells import MERGED, Cell, load_records, result_path, write_json
from moe4.machine.processors import num_usable

POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Names of cells: done now, failed, and never started."""

    done: list[str]
    failed: list[str]
    left: list[str]


@dataclass(slots=True)
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    began: float


def run_cells(
    cells: Sequence[Cell], command: Callable[[Cell], list[str]], results: Path, jobs: int, until: float
) -> Outcome:
    """Run the cells that are not done, `jobs` at a time; start none after `until` seconds.

    command: what does a cell. Its output goes to results/logs. results/yardstick.json is written at the
    start, after every cell and at the end, also where this is interrupted: then running cells are ended.
    Raises YardstickError if results do not belong together.
    """
    began = time.monotonic()
    records = load_records([results])
    write_json(results / MERGED, list(records.values()))
    waiting = [cell for cell in cells if cell.name not in records]
    say(f"{len(cells) - len(waiting)} of {len(cells)} cells are done; {jobs} at a time")
    running, done, failed = list[_Running](), list[str](), list[str]()
    try:
        while running or (waiting and time.monotonic() - began < until):
            while waiting and len(running) < jobs and time.monotonic() - began < until:
                cell = waiting.pop(0)
                running.append(_start(cell, command(cell), results, jobs))
            for each in [one for one in running if one.process.poll() is not None]:
                running.remove(each)
                (done if _finish(each, results) else failed).append(each.cell.name)
            time.sleep(POLL_SECONDS)
    finally:
        for each in running:
            os.killpg(each.process.pid, signal.SIGTERM)
            each.process.wait()
        write_json(results / MERGED, list(load_records([results]).values()))
    return Outcome(done=done, failed=failed, left=[cell.name for cell in waiting])


def _start(cell: Cell, command: list[str], results: Path, jobs: int) -> _Running:
    log = results / "logs" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, num_usable() // jobs))
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            start_new_session=True,  # so that what the cell starts ends with it
        )
    return _Running(cell, process, log, time.monotonic())


def _finish(running: _Running, results: Path) -> bool:
    """Say how a cell ended; return whether its result is there."""
    name, seconds = running.cell.name, time.monotonic() - running.began
    if running.process.returncode == 0 and result_path(results, running.cell).is_file():
        say(f"{name}: done in {seconds:.0f} s")
        write_json(results / MERGED, list(load_records([results]).values()))
        return True
    lines = [line for line in running.log.read_text(errors="replace").splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit code {running.process.returncode}"
    say(f"{name}: failed after {seconds:.0f} s: {reason}")
    return False


def say(text: str) -> None:
    print(f"bench_yardstick: {text}", file=sys.stderr, flush=True)
