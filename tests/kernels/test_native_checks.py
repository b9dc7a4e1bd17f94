"""The kernels alone, without Python: under sanitizers, fuzzed, and as an Arm processor would run them.

pytest tests/kernels/test_native_checks.py     (`make sanitize`)
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from native_build import ARM, CSRC, PATHS, SANITIZE, NoFuzzerError, build, build_fuzzer, paths_here, run

from moe4.kernels import available_paths


def compiler(*names: str) -> str:
    for name in names:
        if shutil.which(name):
            return name
    pytest.skip(f"no {' or '.join(names)} on this machine")


def broken_sources(folder: Path, file: str, line: str, wrong: str) -> Path:
    """Return a copy of the kernels' sources in which one line is wrong."""
    copy = shutil.copytree(CSRC, folder / "native")
    text = (copy / file).read_text()
    assert text.count(line) == 1
    (copy / file).write_text(text.replace(line, wrong))
    return copy


def test_every_path_is_built_here() -> None:
    assert {file.stem for file in (CSRC / "experts").glob("path_*.cpp")} == {*PATHS, "path_portable"}


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Addresses, bounds, overflows, alignment: every path on random shapes, ids, strides and offsets."""
    paths = paths_here()
    if "path_avx512_vnni" in paths:  # at -O1 GCC takes four times as long for it as for all others together
        paths["path_avx512_vnni"] += ("-O0",)
    program = build(tmp_path, compiler("g++", "c++"), SANITIZE, paths, "run_paths")
    *found, compared = run(str(program), "150").split()
    assert tuple(found) == available_paths()
    assert int(compared) > 50_000
    # Inputs that a fuzzer kept are checked the same way.
    (tmp_path / "kept").write_bytes(bytes(range(40)))
    *found, compared = run(str(program), str(tmp_path / "kept")).split()
    assert tuple(found) == available_paths()
    assert int(compared) > 0


def test_avx_vnni(tmp_path: Path) -> None:
    """Its path with AVX-512's form of the instruction, as processors that have both are rare."""
    if "avx512_vnni" not in available_paths():
        pytest.skip("this processor lacks AVX-512 VNNI, by which AVX-VNNI is tested")
    paths = {"path_avxvnni_int16": ("-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512vnni")}
    flags = (*SANITIZE, "-DMOE4_AVXVNNI_BY_AVX512")
    program = build(tmp_path, compiler("g++", "c++"), flags, paths, "run_paths")
    *found, compared = run(str(program), "100").split()
    assert found == ["avxvnni_int16", "portable"]
    assert int(compared) > 30_000


# A row of scales more than there is; and an expert's last token left out where their number is odd.
READ_OUTSIDE = (
    "experts/experts.cpp",
    "const int64_t words = call_.hidden / 8, groups = call_.hidden / call_.group_size;",
    "const int64_t words = call_.hidden / 8, groups = 1 + call_.hidden / call_.group_size;",
)
OFF_BY_ONE = ("experts/tile.h", "if (token < tile.num_tokens)", "if (token + 1 < tile.num_tokens)")


@pytest.mark.parametrize("wrong", [READ_OUTSIDE, OFF_BY_ONE], ids=["read outside", "off by one"])
def test_what_is_wrong_is_seen(tmp_path: Path, wrong: tuple[str, str, str]) -> None:
    csrc = broken_sources(tmp_path, *wrong)
    program = build(tmp_path, compiler("g++", "c++"), SANITIZE, {}, "run_paths", csrc)
    result = subprocess.run([str(program), "50"], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr or "too far from float64" in result.stderr


def fuzzer(folder: Path, csrc: Path = CSRC) -> Path:
    try:
        return build_fuzzer(folder, {}, csrc)
    except NoFuzzerError as error:
        pytest.skip(str(error))


def test_the_fuzzer_finds_nothing_in_its_first_inputs(tmp_path: Path) -> None:
    """libFuzzer's entry, on the portable path; `make fuzz` runs it on all, for as long as one likes."""
    run(str(fuzzer(tmp_path)), "-runs=200", "-seed=1", "-max_len=64", "-rss_limit_mb=4096")


def test_the_fuzzer_finds_what_is_wrong(tmp_path: Path) -> None:
    options = ["-runs=2000", "-seed=1", "-max_len=64", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/"]
    program = fuzzer(tmp_path, broken_sources(tmp_path, *OFF_BY_ONE))
    result = subprocess.run(
        [str(program), *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode != 0
    assert "too far from float64" in result.stderr
    assert list(tmp_path.glob("crash-*"))


def test_arm_paths(tmp_path: Path) -> None:
    """Cross-compiled, run by an emulator."""
    gxx, qemu = compiler("aarch64-linux-gnu-g++"), compiler("qemu-aarch64", "qemu-aarch64-static")
    program = build(tmp_path, gxx, ("-O2", "-static"), ARM, "run_paths")
    *paths, compared = run(qemu, "-cpu", "max", str(program), "60").split()
    assert paths == ["neon_int16", "neon_bf16", "neon", "portable"]
    assert int(compared) > 20_000
    # One with dot products alone.
    *paths, compared = run(qemu, "-cpu", "neoverse-n1", str(program), "20").split()
    assert paths == ["neon_int16", "neon", "portable"]
    assert int(compared) > 5_000
    # One without either.
    *paths, compared = run(qemu, "-cpu", "cortex-a72", str(program), "20").split()
    assert paths == ["neon", "portable"]
    assert int(compared) > 5_000
