"""`moe4 doctor`: this machine, the paths it can run, the one that is taken."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from moe4 import extras
from moe4.cli.app import app
from moe4.errors import KernelError, MissingDependencyError
from moe4.kernels import available_paths, selected_path
from moe4.kernels import inspection as machine
from moe4.kernels.reading import read_tensors
from moe4.machine.gpus import Gpu, list_gpus
from moe4.serve import doctor as diagnosis

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


def test_versions_vllm_and_room_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, text = json.loads(doctor("--json")), doctor()
    assert found["versions"]["torch"] == torch.__version__
    assert f"moe4 {found['versions']['moe4']}, python" in text
    assert found["available_bytes"] <= found["memory_bytes"]
    assert next(disk["use"] for disk in found["disks"]) == "here"
    assert all(disk["free_bytes"] >= 0 for disk in found["disks"])
    monkeypatch.setattr(diagnosis, "find_distribution", no_vllm)
    assert json.loads(doctor("--json"))["vllm"] is None
    assert "vllm       not installed\n" in doctor()


def test_missing_libraries_are_told_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    away = {"pyarrow", "datasets", "vllm"}
    monkeypatch.setattr(extras, "_is_there", lambda module: module not in away)
    assert json.loads(doctor("--json"))["missing"] == [
        {"libraries": ["datasets", "pyarrow"], "command": "pip install 'moe4[data]'"},
        {"libraries": ["vLLM"], "command": "pip install 'moe4[cpu]', or 'moe4[gpu]' with NVIDIA GPUs"},
    ]
    assert "missing    datasets, pyarrow: pip install 'moe4[data]'\n" in doctor()
    away.clear()
    assert json.loads(doctor("--json"))["missing"] == []


def test_without_torch_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_there", lambda module: module != "torch")
    found = json.loads(doctor("--json", "--measure"))
    assert found["threads"] is None and found["selected"] == selected_path()
    assert found["read_bytes_per_second"] > 1e8
    assert "threads    as many as PyTorch takes, which is not installed\n" in doctor()


def no_vllm() -> str:
    raise MissingDependencyError("none")


def test_gpus_are_told_by_their_drivers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert json.loads(doctor("--json"))["gpus"] == []
    assert "gpu        none" in doctor()
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771'\necho 'NVIDIA H200, 143771'\necho '[N/A]'\n")
    driver.chmod(0o755)
    assert doctor().count("gpu        NVIDIA H200, 140.4 GiB") == 2
    driver.write_text("#!/bin/sh\necho failed; exit 9\n")
    assert json.loads(doctor("--json"))["gpus"] == []
    card = tmp_path / "sys" / "class" / "drm" / "card0" / "device"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x1002\n")
    (card / "mem_info_vram_total").write_text(f"{192 << 30}\n")
    assert list_gpus(tmp_path) == [Gpu(vendor="amd", name="AMD GPU", memory_bytes=192 << 30)]


@pytest.mark.parametrize(
    ("endpoint", "offline", "said"),
    [
        ("http://127.0.0.1:9", "", "http://127.0.0.1:9 cannot be used: "),
        ("http://127.0.0.1:9", "1", "cannot be used: HF_HUB_OFFLINE forbids it"),
        ("file:///etc/passwd", "", "HF_ENDPOINT is not an address"),
        ("nonsense", "", "HF_ENDPOINT is not an address"),
    ],
)
def test_a_hub_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, offline: str, said: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (line,) = [line for line in doctor().splitlines() if line.startswith("hub ")]
    assert said in line and line.endswith("a token is there")
    assert "hf_secret" not in doctor() + doctor("--json")


def test_a_hub_that_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        assert json.loads(doctor("--json"))["hub"]["obstacle"] is None
        server.shutdown()


class Refusing(BaseHTTPRequestHandler):
    """It answers, though it refuses: the hub is there."""

    def do_HEAD(self) -> None:  # http.server's name
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


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
        assert read_tensors(parts, num_threads=threads) == expected
    assert read_tensors([]) == 0
    with pytest.raises(KernelError, match=r"^tensors\[1\]: expected contiguous memory of the CPU"):
        read_tensors([parts[0], torch.ones(4, 4).T])
