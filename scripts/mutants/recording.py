"""Which tests run which lines: one run of all tests under coverage.py, and a pytest plugin that names them.

What a fixture of a wider scope runs belongs to every test that uses it, not only to the first.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CONTEXT = "MOE4_MUTANTS_CONTEXT"
CONFIG = """\
[run]
source = {source}
data_file = {folder}/lines
parallel = true
context = ${{{context}-import}}
concurrency = thread
patch = fork
disable_warnings = no-data-collected,module-not-measured,module-not-imported,already-imported
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The tests that run each line, and how long each takes."""

    lines: dict[str, dict[int, set[str]]]
    seconds: dict[str, float]

    def tests_of(self, file: str, lines: tuple[int, ...] | None) -> list[str]:
        """Return the tests that run any of a file's lines, the fastest first; without `lines`, of all."""
        known = self.lines.get(file, {})
        found = set().union(*(known.get(line, set()) for line in (known if lines is None else lines)))
        return sorted(found, key=lambda test: (self.seconds[test], test))


class Names:
    """The plugin: tells coverage which test or fixture runs, and notes times and fixtures."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._seconds: dict[str, float] = defaultdict(float)
        self._fixtures: dict[str, list[str]] = {}
        self._stack: list[str] = []

    def _switch(self) -> None:
        import coverage

        found = coverage.Coverage.current()
        os.environ[CONTEXT] = self._stack[-1] if self._stack else "import"
        if found is not None:
            found.switch_context(os.environ[CONTEXT])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._fixtures[item.nodeid] = list(getattr(item, "fixturenames", []))
        self._stack.append(item.nodeid)
        self._switch()
        began = time.monotonic()
        result = yield
        self._seconds[item.nodeid] += time.monotonic() - began
        self._stack.pop()
        self._switch()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        wide = fixturedef.scope != "function"
        if wide:
            self._stack.append(f"fixture {fixturedef.argname}")
            self._switch()
        try:
            return (yield)
        finally:
            if wide:
                self._stack.pop()
                self._switch()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._seconds[report.nodeid] = float("inf")  # it says nothing of a mutant

    def pytest_sessionfinish(self) -> None:
        self._report.write_text(json.dumps({"seconds": self._seconds, "fixtures": self._fixtures}))


def record(environment: dict[str, str], project: Path, tests: list[str], folder: Path) -> None:
    """Run the tests of the copy once and leave what they ran in `folder`."""
    folder.mkdir()
    config = folder / "coverage.cfg"
    config.write_text(CONFIG.format(source=project / "src", folder=folder, context=CONTEXT))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "recording", "--durations=10", *tests]
    added = {"COVERAGE_PROCESS_START": str(config), "MOE4_MUTANTS_REPORT": str(folder / "tests.json")}
    settings = {**environment, **added}
    settings["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    subprocess.run(command, cwd=project, env=settings, check=False)
    if not (folder / "tests.json").exists():
        raise SystemExit("the tests did not run to their end")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin in the run that records, not in runs that tests start."""
    report = os.environ.pop("MOE4_MUTANTS_REPORT", None)
    if report is not None:
        config.pluginmanager.register(Names(Path(report)))


def load(project: Path, folder: Path) -> Coverage:
    """Return what a recorded run left."""
    import coverage

    noted = json.loads((folder / "tests.json").read_text())
    users: dict[str, set[str]] = defaultdict(set)
    for test, fixtures in noted["fixtures"].items():
        users[test].add(test)
        for fixture in fixtures:
            users[f"fixture {fixture}"].add(test)
    data = coverage.CoverageData(no_disk=True)
    for part in folder.glob("lines.*"):
        found = coverage.CoverageData(str(part))
        with contextlib.suppress(coverage.exceptions.DataError):  # of a process that a test killed
            found.read()
            data.update(found)
    lines: dict[str, dict[int, set[str]]] = {}
    for file in data.measured_files():
        contexts = data.contexts_by_lineno(file)
        lines[str(Path(file).relative_to(project))] = {
            line: {test for name in names for test in users.get(name.removeprefix("import|"), ())}
            for line, names in contexts.items()
        }
    return Coverage(lines=lines, seconds=noted["seconds"])
