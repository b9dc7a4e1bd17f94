"""The kernels alone, without Python: under sanitizers, and as an Arm processor would run them.

pytest tests/kernels/test_native_checks.py     (`make sanitize`)
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from native_build import ARM, COMMON, CSRC, X86, build, run

from moe4.kernels import available_paths

PATHS = {**X86, **ARM}
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def paths_here() -> dict[str, tuple[str, ...]]:
    return {name: flags for name, flags in PATHS.items() if name.removeprefix("path_") in available_paths()}


def compiler(*names: str) -> str:
    for name in names:
        if shutil.which(name):
            return name
    pytest.skip(f"no {' or '.join(names)} on this machine")


def test_every_path_is_built_here() -> None:
    assert {file.stem for file in CSRC.glob("path_*.cpp")} == {*PATHS, "path_portable"}


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Addresses, bounds, overflows, alignment: every path on random shapes, ids, strides and offsets."""
    program = build(tmp_path, compiler("g++", "c++"), SANITIZE, paths_here(), "run_paths")
    *paths, compared = run(str(program), "300").split()
    assert tuple(paths) == available_paths()
    assert int(compared) > 100_000


def test_the_sanitizers_see_a_read_outside(tmp_path: Path) -> None:
    """A row of scales more than there is: the program must not end well."""
    text = (CSRC / "experts.cpp").read_text()
    line = "const int64_t words = call_.hidden / 8, groups = call_.hidden / call_.group_size;"
    assert text.count(line) == 1
    (tmp_path / "experts.cpp").write_text(
        text.replace("groups = call_.hidden /", "groups = 1 + call_.hidden /")
    )
    common = [str(CSRC / f"{name}.cpp") for name in COMMON if name != "experts"]
    native = Path(__file__).parent / "native"
    program = str(tmp_path / "broken")
    run(
        compiler("g++", "c++"),
        *SANITIZE,
        "-std=c++17",
        "-w",
        f"-I{CSRC}",
        str(tmp_path / "experts.cpp"),
        *common,
        str(native / "check_paths.cpp"),
        str(native / "run_paths.cpp"),
        "-o",
        program,
        "-pthread",
        "-ldl",
    )
    result = subprocess.run([program, "50"], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr or "too far from float64" in result.stderr


def test_arm_paths(tmp_path: Path) -> None:
    """Cross-compiled, run by an emulator."""
    gxx, qemu = compiler("aarch64-linux-gnu-g++"), compiler("qemu-aarch64", "qemu-aarch64-static")
    program = build(tmp_path, gxx, ["-O2", "-static"], ARM, "run_paths")
    *paths, compared = run(qemu, "-cpu", "max", str(program), "60").split()
    assert paths == ["neon_bf16", "neon", "portable"]
    assert int(compared) > 20_000
    # A processor without BF16 takes the other path.
    *paths, compared = run(qemu, "-cpu", "cortex-a72", str(program), "20").split()
    assert paths == ["neon", "portable"]
    assert int(compared) > 5_000
