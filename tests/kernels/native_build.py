"""Compile the kernels without Python, with a program that checks all of a machine's paths (native/)."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NATIVE = Path(__file__).parent / "native"
CSRC = Path(__file__).resolve().parents[2] / "src" / "moe4" / "kernels" / "csrc"
COMMON = ("experts", "paths", "threads", "path_portable")
AVX512 = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# The flags of each path, as in CMakeLists.txt.
X86 = {
    "path_avx2": ("-mavx2", "-mfma"),
    "path_avx512": AVX512,
    "path_avx512_bf16": (*AVX512, "-mavx512bf16"),
}
ARM = {"path_neon": ("-march=armv8-a",), "path_neon_bf16": ("-march=armv8.2-a+bf16",)}


def build(
    folder: Path, compiler: str, flags: list[str], paths: dict[str, tuple[str, ...]], main: str
) -> Path:
    """Compile `main` with every path in `paths`; return the program. Raises with the compiler's words."""
    macros = [f"-DMOE4_HAVE_{name.removeprefix('path_').upper()}" for name in paths]
    sources = [(CSRC / f"{name}.cpp", paths.get(name, ())) for name in (*COMMON, *paths)]
    sources += [(NATIVE / f"{name}.cpp", ()) for name in ("check_paths", main)]

    def compile_one(source: tuple[Path, tuple[str, ...]]) -> str:
        file, extra = source
        target = str(folder / f"{file.stem}.o")
        run(compiler, "-std=c++17", "-w", f"-I{CSRC}", *macros, *flags, *extra, "-c", str(file), "-o", target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / main
    run(compiler, *flags, *objects, "-o", str(program), "-pthread", "-ldl")
    return program


def run(*command: str, timeout: float = 300) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == 0, (
        f"{' '.join(command)}\nexit code {result.returncode}\n{result.stderr[-4000:]}"
    )
    return result.stdout
