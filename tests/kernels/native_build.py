"""Compile the kernels without Python, with a program that checks all of a machine's paths (native/).

Objects are kept in build/objects under the hash of what they are made of, so that programs share them.
"""

import hashlib
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moe4.kernels import available_paths

NATIVE = Path(__file__).parent / "native"
CSRC = Path(__file__).resolve().parents[2] / "native"
OBJECTS = Path(__file__).resolve().parents[2] / "build" / "objects"
COMMON = ("experts", "int4_linear", "int8_linear", "paths", "path_portable")
SANITIZE = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
AVX512 = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
EXACT = "-ffp-contract=off"
# The flags of each path, as in CMakeLists.txt.
X86 = {
    "path_avx2": ("-mavx2", "-mfma"),
    "path_avx2_int16": ("-mavx2", "-mfma", EXACT),
    "path_avxvnni_int16": ("-mavx2", "-mfma", "-mavxvnni", EXACT),
    "path_avx512": AVX512,
    "path_avx512_bf16": (*AVX512, "-mavx512bf16"),
    "path_avx512_vnni": (*AVX512, "-mavx512vnni"),
    "path_amx_int16": (*AVX512, "-mavx512vnni", "-mamx-tile", "-mamx-int8"),
}
ARM = {
    "path_neon": ("-march=armv8-a",),
    "path_neon_bf16": ("-march=armv8.2-a+bf16",),
    "path_neon_int16": ("-march=armv8.2-a+dotprod", EXACT),
}
PATHS = {**X86, **ARM}


class NoFuzzerError(Exception):
    """This machine has no clang++, or one without libFuzzer."""


def paths_here() -> dict[str, tuple[str, ...]]:
    """Return the files and flags of the paths that this machine can run, but the portable one."""
    return {name: flags for name, flags in PATHS.items() if name.removeprefix("path_") in available_paths()}


def build(
    folder: Path,
    compiler: str,
    flags: tuple[str, ...],
    paths: dict[str, tuple[str, ...]],
    main: str,
    csrc: Path = CSRC,
) -> Path:
    """Compile `main` with every path in `paths`; return the program."""
    macros = [f"-DMOE4_HAVE_{name.removeprefix('path_').upper()}" for name in paths]
    experts = csrc / "experts"
    sources = [(experts / f"{name}.cpp", paths.get(name, ())) for name in (*COMMON, *paths)]
    sources += [(csrc / f"{name}.cpp", ()) for name in ("processor", "threads")]
    if "path_avx512_bf16" in paths:
        sources.append((experts / "int8_avx512_bf16.cpp", paths["path_avx512_bf16"]))
    sources += [(NATIVE / f"{name}.cpp", ()) for name in ("check_int8", "check_paths", main)]

    common = (f"-I{csrc}", f"-I{experts}", *macros, *flags)

    def compile_one(source: tuple[Path, tuple[str, ...]]) -> str:
        file, extra = source
        return str(compile_object(compiler, file, (*common, *extra)))

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / main
    run(compiler, *flags, *objects, "-o", str(program), "-pthread", "-ldl")
    return program


def compile_object(compiler: str, file: Path, flags: tuple[str, ...]) -> Path:
    """Compile a file, unless that was done before; return the object. Raises with the compiler's words."""
    command = (compiler, "-std=c++17", "-w", *flags)
    text = run(*command, "-E", "-P", str(file))
    version = run(compiler, "--version")
    chosen = [flag for flag in command if not flag.startswith(("-I", "-D"))]  # those have done their part
    name = hashlib.sha256("\0".join((version, *chosen, text)).encode()).hexdigest()
    target = OBJECTS / f"{name}.o"
    if not target.exists():
        OBJECTS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=OBJECTS) as folder:
            made = Path(folder) / "object.o"
            run(*command, "-c", str(file), "-o", str(made))
            made.replace(target)
    return target


def build_fuzzer(folder: Path, paths: dict[str, tuple[str, ...]], csrc: Path = CSRC) -> Path:
    """Compile native/fuzz_paths.cpp with libFuzzer; return the program. Raises NoFuzzerError."""
    clang = shutil.which("clang++")
    if not clang:
        raise NoFuzzerError(
            "no clang++ on this machine: install it (Debian and Ubuntu: apt-get install clang)"
        )
    runtime = run(clang, "-print-resource-dir").strip()
    if not list(Path(runtime).glob("lib/**/libclang_rt.fuzzer*")):
        raise NoFuzzerError(
            f"clang++ is here without its fuzzing runtime in {runtime}: "
            "install it (Debian and Ubuntu: apt-get install libclang-rt-dev)"
        )
    # The sanitizers watch all; each new branch taken in any of it makes an input worth keeping.
    flags = (*SANITIZE[:2], "-fsanitize=address,undefined,fuzzer", *SANITIZE[3:])
    return build(folder, clang, flags, paths, "fuzz_paths", csrc)


def run(*command: str, timeout: float = 300) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == 0, (
        f"{' '.join(command)}\nexit code {result.returncode}\n{result.stderr[-4000:]}"
    )
    return result.stdout
