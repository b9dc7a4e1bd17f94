"""No path reads or writes outside its buffers."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moe4.kernels import available_paths

SCRIPT = Path(__file__).with_name("guard_pages.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="mmap's constants here are Linux's")
def test_all_paths_stay_inside_their_buffers() -> None:
    result = run(*available_paths())
    assert result.stdout.split() == list(available_paths()), "the last one did not"
    assert result.returncode == 0, f"signal or error {result.returncode} of the last: {result.stderr}"


@pytest.mark.skipif(sys.platform != "linux", reason="mmap's constants here are Linux's")
def test_the_guard_catches_a_read_outside() -> None:
    assert run("portable", "--touch").returncode == -signal.SIGSEGV
