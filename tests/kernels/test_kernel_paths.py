"""Which path runs, and that the extension shares the process's OpenMP runtime."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe4.errors import KernelError
from moe4.kernels import available_paths, paths, selected_path
from moe4.kernels.paths import ON_REQUEST


def test_the_portable_path_is_always_there() -> None:
    chosen = [path for path in available_paths() if path not in ON_REQUEST]
    assert chosen[-1] == "portable"
    assert set(chosen) <= {
        "amx_int16",
        "avx512_int16",
        "avxvnni_int16",
        "avx2_int16",
        "avx512_bf16",
        "avx512",
        "avx2",
        "neon_int16",
        "neon_bf16",
        "neon",
        "portable",
    }


def test_the_paths_are_those_the_processor_reports() -> None:
    """Linux's own list of features is the oracle for ours."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(set(line.split()) for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        pytest.skip("no /proc/cpuinfo with flags")
    avx2 = {"avx2", "fma"} <= flags
    avx512 = avx2 and {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
    wanted = [
        name
        for name, there in (
            ("amx_int16", avx512 and {"avx512_vnni", "amx_tile", "amx_int8"} <= flags),
            ("avx512_int16", avx512 and "avx512_vnni" in flags),
            ("avxvnni_int16", avx2 and "avx_vnni" in flags),
            ("avx2_int16", avx2),
            ("avx512_bf16", avx512 and "avx512_bf16" in flags),
            ("avx512", avx512),
            ("avx2", avx2),
            ("portable", True),
            ("avx512_vnni", avx512 and "avx512_vnni" in flags),
        )
        if there
    ]
    assert list(available_paths()) == wanted


def test_the_fastest_path_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOE4_KERNEL", raising=False)
    assert selected_path() == available_paths()[0]


@pytest.mark.parametrize("only", [("avx512_vnni", "portable"), ("portable", "avx512_vnni")])
def test_a_path_on_request_is_never_the_default(
    monkeypatch: pytest.MonkeyPatch, only: tuple[str, ...]
) -> None:
    """Not even where nothing else is fast, whatever the order."""
    assert ON_REQUEST.keys() == {"avx512_vnni"}
    monkeypatch.setattr(paths, "PATHS", only)
    monkeypatch.delenv("MOE4_KERNEL", raising=False)
    assert selected_path() == "portable"
    monkeypatch.setenv("MOE4_KERNEL", "avx512_vnni")
    assert selected_path() == "avx512_vnni"


@pytest.mark.parametrize("path", available_paths())
def test_moe4_kernel_forces_a_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE4_KERNEL", path)
    assert selected_path() == path


def test_moe4_kernel_names_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE4_KERNEL", "avx1024")
    with pytest.raises(KernelError, match=r"MOE4_KERNEL: expected one of .*found 'avx1024'"):
        selected_path()


def test_a_forced_path_is_the_one_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from expert_cases import make_case

    from moe4.kernels import fused_experts

    case = vars(make_case(tokens=5, dtype=torch.float32))
    for path in available_paths():
        monkeypatch.setenv("MOE4_KERNEL", path)
        assert torch.equal(fused_experts(**case), fused_experts(**case, path=path))
    monkeypatch.setenv("MOE4_KERNEL", "none")
    with pytest.raises(KernelError, match=r"^MOE4_KERNEL: expected one of"):
        fused_experts(**case)


def test_no_second_openmp_runtime() -> None:
    """The extension runs on the library torch has loaded, and loads none of its own."""
    code = """
import re, torch
def loaded():
    with open("/proc/self/maps") as maps:
        return set(re.findall(r"/\\S*lib(?:gomp|iomp5|omp)\\S*", maps.read()))
before = loaded()
from moe4.kernels import _experts
runtime = _experts.thread_runtime()
assert loaded() == before, loaded() - before
assert before and runtime in before, (runtime, before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_without_an_openmp_runtime_there_are_plain_threads() -> None:
    """The extension alone, in a process that never loads torch."""
    code = """
import ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("_experts", sys.argv[1])
experts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(experts)
assert experts.thread_runtime() == "std::thread"
tokens, hidden, inter = 300, 64, 64
def floats(n, value): return (ctypes.c_float * n)(*[value] * n)
x, out, weights = floats(tokens * hidden, 0.5), floats(tokens * hidden, 0), floats(tokens, 1)
ids = (ctypes.c_int64 * tokens)()
w13 = (ctypes.c_uint32 * (2 * inter * hidden // 8))(*[0x99999999] * (2 * inter * hidden // 8))
w2 = (ctypes.c_uint32 * (hidden * inter // 8))(*[0x99999999] * (hidden * inter // 8))
scale = (ctypes.c_uint16 * 256)(*[0x3C00] * 256)
portable = experts.path_names().index("portable")
experts.run(portable, tokens=tokens, hidden=hidden, inter=inter, experts=1, top_k=1, group_size=64,
            num_threads=3, dtype=experts.F32, x=ctypes.addressof(x), out=ctypes.addressof(out),
            w13=ctypes.addressof(w13), w13_scale=ctypes.addressof(scale), w2=ctypes.addressof(w2),
            w2_scale=ctypes.addressof(scale), weights=ctypes.addressof(weights), ids=ctypes.addressof(ids))
import math
g = 64 * 0.5 * 2.0**-7
want = 64 * 2.0**-7 * g / (1 + math.exp(-g)) * g
assert all(abs(v - want) < 1e-6 for v in out), (out[0], want)
"""
    from moe4.kernels import _experts

    result = subprocess.run(
        [sys.executable, "-c", code, _experts.__file__],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
