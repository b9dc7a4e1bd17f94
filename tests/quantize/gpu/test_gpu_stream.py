"""The GPU's stream of experts on a CPU: Triton's interpreter must be asked for before its first import."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe4.errors import RecipeError
from moe4.quantize.transfer.device_memory import require_device

CASES = Path(__file__).with_name("gpu_stream_cases.py")


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; on Linux, pip install triton brings it (vLLM's packages do, too)",
)
def test_the_stream_passes_in_tritons_interpreter() -> None:
    # What pytest-xdist tells its workers does not hold for a run of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=CASES.parents[2])
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


def test_a_gpu_without_triton_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match="device cuda needs Triton, which is not installed: pip install"):
        require_device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(RecipeError, match=r"^device cuda cannot be used: [^\n]+$"):
        require_device("cuda")
