"""Break a package in one small place at a time and see whether a test notices (docs/mutants.md).

    python scripts/mutants checkpoint --folder /tmp/mutants

Everything happens in a copy of the checkout. The package's tests run once under coverage.py; then each mutant
meets the tests that run its line, the fastest first, until one fails.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mutations import Mutant, sample
from recording import Coverage, load, record
from workplace import copy_project, environment, fork

# What tests a package, where that is not tests/PACKAGE: more than that, or the files that are quick.
TESTS = {
    "checkpoint": [
        "tests/checkpoint",
        "tests/vllm_plugin/loader/test_loader_expert_cache.py",
        "tests/vllm_plugin/loader/test_mapped_loader.py",
        "tests/quantize/run/test_source_changes.py",
    ],
    "cli/progress.py": ["tests/cli"],
    "quantize": [
        "tests/quantize/gpu/test_gpu_reference.py",
        "tests/quantize/planning",
        "tests/quantize/forecast",
        "tests/quantize/transfer/test_reader.py",
        "tests/quantize/run/test_bad_input.py",
        "tests/quantize/run/test_commit_queue.py",
        "tests/quantize/run/test_int4_source.py",
        "tests/quantize/run/test_release.py",
        "tests/quantize/run/test_running_probe.py",
        "tests/quantize/reporting",
    ],
}
# Cases of GPU kernels run one by one, interpreted by Triton, and not in a process of their own.
FILES = "python_files=test_*.py gpu_cases.py"
SKIPPED = "interpreter"
PROJECT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 20.0  # of a test; slower ones are left out
BUDGET_SECONDS = 60.0  # of a mutant's tests together
WARNINGS = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # of what is imported before the tests
FIRST_SECONDS = 60.0  # beside the tests' own, after which a mutant counts as hanging


def main() -> None:
    """Print a line for each mutant, then the counts; --folder keeps both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", help="a folder or file of src/moe4")
    parser.add_argument("--count", type=int, default=40, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="an empty or absent one, for the copy")
    parser.add_argument("--recorded", action="store_true", help="keep the lines recorded there before")
    options = parser.parse_args()
    if importlib.util.find_spec("coverage") is None:
        parser.error("coverage.py is not installed: pip install 'coverage>=7.10,<8'")
    project, recorded = options.folder / "project", options.folder / "recorded"
    if not options.recorded and options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty")
    copy_project(PROJECT, project)
    if not options.recorded:
        tests = TESTS.get(options.package, [f"tests/{options.package}"])
        record(
            environment(PROJECT, project),
            project,
            ["-m", "not vllm", "-k", f"not {SKIPPED}", "-o", FILES, *tests],
            recorded,
        )
    coverage = load(project, recorded)
    os.environ.update(environment(PROJECT, project), PYTHONDONTWRITEBYTECODE="1")
    os.chdir(project)
    preload(project)
    package = project / "src" / "moe4" / options.package
    mutants = sample(project, package, options.count, options.seed)
    results: list[dict[str, Any]] = []
    for mutant in mutants:
        results.append(try_out(mutant, choose_tests(mutant, coverage), coverage, options.folder))
        (options.folder / "results.json").write_text(json.dumps(results, indent=1))
    check_whole(sorted({test for result in results for test in result["seen_by"]}), coverage, options.folder)
    print(options.package, dict(Counter(result["outcome"] for result in results)))


def choose_tests(mutant: Mutant, coverage: Coverage) -> list[str]:
    """Return the tests that the mutant will meet, in order."""
    chosen, total = [], 0.0
    for test in coverage.tests_of(mutant.file, mutant.lines):
        total += coverage.seconds[test]
        if coverage.seconds[test] > LONGEST_SECONDS or total > BUDGET_SECONDS:
            break
        chosen.append(test)
    return chosen


def check_whole(tests: list[str], coverage: Coverage, folder: Path) -> None:
    """Stop unless the tests that saw mutants pass as long as nothing is broken, run as they were run."""
    code = fork(lambda: run_tests(tests), folder / "output", limit_of(tests, coverage))
    if code != 0:
        print((folder / "output").read_text(errors="replace")[-5000:])
        raise SystemExit(f"the tests fail without a mutant ({code})")


def limit_of(tests: list[str], coverage: Coverage) -> float:
    """Return the seconds after which tests count as hanging."""
    return FIRST_SECONDS + 3 * sum(coverage.seconds[test] for test in tests)


def preload(project: Path) -> None:
    """Import what every test needs and no mutant touches, so that each child begins with it.

    The children's own imports must be the copy's, as those of the processes they start are.
    """
    import compressed_tensors  # noqa: F401
    import hypothesis  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    exec((project / "site" / "sitecustomize.py").read_text())
    sys.dont_write_bytecode = True
    sys.pycache_prefix = str(project / "compiled")
    sys.path[:0] = [str(project / name) for name in ("src", "reference")]
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("moe4", "k2tiny")]
    if loaded:
        raise SystemExit(f"{loaded[0]} is imported before it can be broken")


def try_out(mutant: Mutant, tests: list[str], coverage: Coverage, folder: Path) -> dict[str, Any]:
    """Run the tests on a mutant; return what became of it, with the test that saw it."""
    path = folder / "project" / mutant.file
    source, times = path.read_bytes(), path.stat()
    told = mutant.describe(source)
    outcome, seen_by, began = "not run by any test", list[str](), time.monotonic()
    if tests:
        path.write_bytes(mutant.apply(source))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**10))  # the compiled file is another's
        try:
            code = fork(lambda: run_tests(tests), folder / "output", limit_of(tests, coverage))
        finally:
            path.write_bytes(source)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        outcome = {0: "survived", None: "hung"}.get(code, "noticed")
        for line in (folder / "output").read_text(errors="replace").splitlines():
            name = line.removeprefix("FAILED ").removeprefix("ERROR ").partition(" - ")[0]
            seen_by += [name] if name in tests else []
    seconds = round(time.monotonic() - began, 1)
    print(f"{outcome}: {told} ({len(tests)} tests, {seconds} s)", flush=True)
    return {
        "outcome": outcome,
        "mutant": told,
        "seen_by": seen_by,
        "num_tests": len(tests),
        "seconds": seconds,
    }


def run_tests(tests: list[str]) -> int:
    """Run tests in this process until one fails."""
    import pytest

    return int(
        pytest.main(
            ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=line", *WARNINGS, *tests]
        )
    )


if __name__ == "__main__":
    os.nice(19)
    main()
