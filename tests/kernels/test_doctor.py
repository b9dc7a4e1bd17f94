"""`moe4 doctor`: this machine, the paths it can run, the one that is taken."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import KernelError
from moe4.kernels import available_paths, selected_path
from moe4.kernels import inspection as machine

RUNNER = CliRunner()


def doctor(*arguments: str) -> str:
    result = RUNNER.invoke(app, ["doctor", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_json_agrees_with_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOE4_KERNEL", raising=False)
    found = json.loads(doctor("--json"))
    assert found["selected"] == selected_path() == available_paths()[0]
    assert [p["name"] for p in found["paths"] if p["obstacle"] is None] == list(available_paths())
    assert found["threads"] >= 1 and found["cpus"] >= 1 and found["memory_bytes"] > 2**28
    assert found["read_bytes_per_second"] is None


def test_the_compiler_is_told_or_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert json.loads(doctor("--json"))["cpp_compiler"] is None
    assert "install g++" in doctor()
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    assert json.loads(doctor("--json"))["cpp_compiler"] == str(tmp_path / "g++")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert json.loads(doctor("--json"))["cpp_compiler"] is None


def test_a_forced_path_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE4_KERNEL", "portable")
    (line,) = [line for line in doctor().splitlines() if "taken" in line]
    assert "portable" in line and "MOE4_KERNEL names it" in line


def test_a_path_on_request_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx512_vnni" not in available_paths():
        pytest.skip("this machine has no path on request")
    monkeypatch.delenv("MOE4_KERNEL", raising=False)
    (line,) = [line for line in doctor().splitlines() if "avx512_vnni" in line]
    assert "on request only: activations are rounded to int8" in line and "taken" not in line
    found = {path["name"]: path["on_request"] for path in json.loads(doctor("--json"))["paths"]}
    assert found.pop("avx512_vnni") == "activations are rounded to int8"
    assert not any(found.values())


def test_a_path_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE4_KERNEL", "avx1024")
    with pytest.raises(KernelError, match="MOE4_KERNEL: expected one of"):
        RUNNER.invoke(app, ["doctor"], catch_exceptions=False)


def test_obstacles_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor with AVX2 only, and on one whose path was left out when the extension was built."""
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "PATHS", ("portable",))
    states = {state.name: state.obstacle for state in machine._path_states({"avx2", "fma", "avx512f"})}
    assert states["portable"] is None
    assert states["avx2"] == "not compiled in"
    assert states["avx512"] == "the processor lacks avx512bw, avx512dq, avx512vl"


def test_the_read_rate_is_a_rate() -> None:
    assert json.loads(doctor("--json", "--measure"))["read_bytes_per_second"] > 1e8


def test_reading_reads_everything() -> None:
    """The exclusive or changes with every word, wherever it lies, on any number of threads."""
    parts = [torch.randint(-(2**62), 2**62, (n,)) for n in (1, 31, 32, 33, 2**15 + 3)]
    expected = 0
    for part in parts:
        expected ^= int(np.bitwise_xor.reduce(part.numpy().view(np.uint64)))
    for threads in (1, 2, 3):
        assert machine.read_tensors(parts, num_threads=threads) == expected
    assert machine.read_tensors([]) == 0
    with pytest.raises(KernelError, match=r"^tensors\[1\]: expected contiguous memory of the CPU"):
        machine.read_tensors([parts[0], torch.ones(4, 4).T])
