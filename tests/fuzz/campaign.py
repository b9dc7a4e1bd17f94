"""Many cases on all processors; their faults are grouped by place, the first of each kept with its files."""

import gc
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import typer.main
from fuzz import sandbox
from fuzz.cases import make_case
from fuzz.seeds import make_seeds
from fuzz.verdict import Fault, judge

MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30
KEPT_OF_A_GROUP = 3
SAID_EVERY = 500
PATIENCE = 3  # a case that took too long gets so many times the seconds, once: the machine may have been busy


@dataclass(kw_only=True, slots=True)
class Result:
    """codes: how often each kind of case ended how. faults: (number, fault) by (kind, place)."""

    codes: Counter[str] = field(default_factory=Counter)
    faults: dict[tuple[str, str], list[tuple[int, Fault]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What all workers share."""

    seed: int
    only: str | None
    seconds: float
    scratch: Path
    failures: Path
    keep: bool


def run_campaign(
    *,
    seed: int,
    numbers: range,
    only: str | None = None,
    num_workers: int = 0,
    seconds: float,
    failures: Path,
    keep: bool = False,
    say: Callable[[str], None],
) -> Result:
    """Run the cases of these numbers; return what became of them."""
    num_workers = min(num_workers or len(os.sched_getaffinity(0)), len(numbers)) or 1
    with _scratch() as scratch:
        settings = Settings(
            seed=seed, only=only, seconds=seconds, scratch=scratch, failures=failures.absolute(), keep=keep
        )
        say(f"making seeds in {scratch}")
        with _quiet(scratch / "seeds.log"):
            make_seeds(scratch / "seeds")
            _warm_up(scratch / "seeds")
        gc.freeze()  # or every child would copy what the collector marks
        say(f"{len(numbers)} cases from {numbers.start}, seed {seed}, {num_workers} at a time")
        result = _collect(settings, numbers, num_workers, say)
        gc.unfreeze()
    _summarize(result, settings, say)
    return result


@contextmanager
def _scratch() -> Iterator[Path]:
    """Make the one folder that anything is written into, in memory where there is room, and remove it."""
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    folder = Path(tempfile.mkdtemp(prefix="moe4-fuzz-", dir=MEMORY if has_room else None)).resolve()
    try:
        yield folder
    finally:
        sandbox.remove(folder)


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send what is printed, by whatever, into a file."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)


def _warm_up(seeds: Path) -> None:
    """Import what the commands import, and assemble them, once and before anything forks."""
    typer.main.get_command = cache(typer.main.get_command)
    release, k2 = str(seeds / "release"), str(seeds / "k2")
    data = ["--data", str(seeds / "data" / "calibration.jsonl"), "--num-sequences", "1"]
    for arguments in (
        ["plan", k2, "--no-time", "--method", "rtn"],
        # for Mistral's tokenizers transformers imports hundreds of modules
        ["plan", str(seeds / "mixtral"), "--no-time", "--method", "rtn"],
        ["verify", release],
        ["fit", release],
        ["lint", *(str(path) for path in (seeds / "manifests").glob("k*.yaml"))],
        ["card", release, "--dry-run"],
        ["report", release, "-o", str(seeds / "report.html")],
        ["compare", k2, release, *data],
        ["serve", release, "--print-command"],
        ["smoke", "http://127.0.0.1:1", "--timeout", "1"],
        ["toolcheck", "http://127.0.0.1:1", "--retries", "0"],
        ["chat", "--base-url", "http://127.0.0.1:1", "--message", "x"],
        ["doctor"],
    ):
        sandbox.call_main(arguments)


def _collect(settings: Settings, numbers: range, num_workers: int, say: Callable[[str], None]) -> Result:
    """Fork the workers, which write a line of JSON for each case, and read those."""
    reading, writing = os.pipe()
    pids = []
    for worker in range(num_workers):
        pid = os.fork()
        if pid == 0:
            _work(settings, numbers[worker::num_workers], writing)
        pids.append(pid)
    os.close(writing)
    result, num_done = Result(), 0
    with os.fdopen(reading, encoding="utf-8") as lines:
        for line in lines:
            answer: dict[str, Any] = json.loads(line)
            num_done += 1
            result.codes[f"{answer['kind']} {answer['code']}"] += 1
            if answer["fault"] is not None:
                fault = Fault(*answer["fault"])
                group = result.faults.setdefault((fault.kind, fault.place), [])
                group.append((answer["number"], fault))
                if len(group) == 1:
                    say(f"case {answer['number']}: {fault.kind} {fault.place}: {fault.detail[:200]!r}")
            if num_done % SAID_EVERY == 0:
                say(f"{num_done} cases, faults in {len(result.faults)} places")
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert not any(codes) and num_done == len(numbers), (codes, num_done)
    return result


def _work(settings: Settings, numbers: range, writing: int) -> None:
    """Be a worker: never returns."""
    code = 1
    try:
        groups: Counter[tuple[str, str]] = Counter()
        for number in numbers:
            kind, ending_code, fault = _run_case(settings, number, groups)
            found = fault and (fault.kind, fault.place, fault.detail[:3000])
            line = {"number": number, "kind": kind, "code": ending_code, "fault": found}
            os.write(writing, json.dumps(line).encode() + b"\n")  # short enough to be one piece
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run_case(
    settings: Settings, number: int, groups: Counter[tuple[str, str]]
) -> tuple[str, int | None, Fault | None]:
    def work() -> int:
        return make_case(
            settings.seed, number, settings.scratch / "seeds", settings.only, sandbox.call_limited
        )

    folder = settings.scratch / f"case-{number}"
    for seconds in (settings.seconds, settings.seconds * PATIENCE):
        ending = sandbox.run_confined(folder, work, seconds)
        made = _read_note(folder)
        fault = judge(ending, made["arguments"])
        if fault is not None:
            place = (fault.kind, fault.place)
            groups[place] += fault.kind != "hang" or seconds > settings.seconds
        sandbox.remove(folder)
        if fault is None or fault.kind != "hang":
            break
    if settings.keep or (fault is not None and groups[fault.kind, fault.place] <= KEPT_OF_A_GROUP):
        _keep(settings, number, made, ending, fault)
    return made["kind"], ending.code, fault


def _read_note(folder: Path) -> dict[str, Any]:
    """Return what cases._note wrote; a case that the fuzzer could not make has none."""
    import ast

    try:
        text = (folder / "case").read_bytes().decode("utf-8", "surrogatepass")
    except FileNotFoundError:
        return {"kind": "none", "notes": [], "arguments": ["none"]}
    note: dict[str, Any] = ast.literal_eval(text)
    return note


def _keep(
    settings: Settings, number: int, made: dict[str, Any], ending: sandbox.Ending, fault: Fault | None
) -> None:
    """Save a case: its files as they were before the command ran, the command, and what it said."""

    def work() -> int:
        return make_case(settings.seed, number, settings.scratch / "seeds", settings.only, lambda _: 0)

    folder = settings.failures / f"{settings.seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    sandbox.run_confined(folder, work, settings.seconds)
    for name in ("tmp", "home"):
        sandbox.remove(folder / name)
    told = {"fault": fault and (fault.kind, fault.place), "code": ending.code, **made}
    parts = [json.dumps(told, indent=1), ending.messages, fault.detail if fault else "", ending.saved]
    (folder / "told.txt").write_text("\n\n".join(parts), encoding="utf-8", errors="backslashreplace")
    script = f'#!/bin/sh\ncd "$(dirname "$0")/files" && exec moe4 {shlex.join(made["arguments"])}\n'
    (folder / "replay.sh").write_text(script, encoding="utf-8", errors="surrogateescape")


def _summarize(result: Result, settings: Settings, say: Callable[[str], None]) -> None:
    for line, count in sorted(result.codes.items()):
        say(f"{count:6} {line}")
    for (kind, place), group in sorted(result.faults.items()):
        shown = ", ".join(str(number) for number, _ in sorted(group, key=lambda item: item[0])[:5])
        say(f"{len(group):6} {kind} {place}: cases {shown}: {group[0][1].detail[:160]!r}")
    if result.faults:
        only = f" --only {settings.only}" if settings.only else ""
        say(
            f"kept in {settings.failures}; again: python -m fuzz --seed {settings.seed}{only} --replay NUMBER"
        )
