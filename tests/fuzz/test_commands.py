"""Some hundred cases of the fuzzer; `make fuzz` runs thousands."""

import os
import subprocess
import sys
from pathlib import Path

from model_fixtures import REPOSITORY

NUM_CASES = 500


def test_moe4_has_no_fault_in_some_hundred_cases(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fuzz",
        "--cases",
        str(NUM_CASES),
        "--failures",
        str(tmp_path / "failures"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    # A shared machine may be slow; `make fuzz` holds cases to 5 seconds.
    result = subprocess.run(
        [*command, "--seconds", "15"], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
