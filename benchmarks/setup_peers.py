"""Install the engines that `bench_experts.py` is compared with: zentorch, kt-kernel, and ggml from llama.cpp.

    python benchmarks/setup_peers.py DIR

DIR/python is a virtual environment that adds the two packages to those of the Python that runs this, so
that all contestants use one torch. DIR/ggml is built for this processor from the sources in the package
llama-cpp-python, with the options that llama.cpp itself builds with. Needs a C++ compiler, make, some minutes
and 1 GB. Run again, it does what is missing; what cannot be had is named, and the exit code is then 1.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path

# Their dependencies are there already, but for those named here; without --no-deps, pip would replace torch.
ZENTORCH = ("zentorch==2.13.0.2", "deprecated", "wrapt")
KT_KERNEL = ("kt-kernel==0.7.2", "gguf")
LLAMA_CPP = "llama-cpp-python==0.3.36"

CMAKE_LISTS = """\
cmake_minimum_required(VERSION 3.14)
project(ggml_for_benchmark C CXX)
add_subdirectory(${GGML_SOURCE} ggml)
"""


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def make_python(folder: Path) -> Path:
    """Make a virtual environment that sees this Python's packages, and return its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    (site / "benchmark_base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, *packages: str) -> None:
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *packages)


def build_ggml(python: Path, folder: Path) -> None:
    """Download llama.cpp's sources and build ggml's libraries for the CPU in `folder`."""
    if next(folder.rglob("libggml-cpu.so"), None):
        return
    install(python, "cmake")
    folder.mkdir(exist_ok=True)
    if not next(folder.glob("llama_cpp_python-*.tar.gz"), None):
        options = ("-q", "--no-deps", "--no-binary", ":all:", "-d", folder)
        run(python, "-m", "pip", "download", "--disable-pip-version-check", *options, LLAMA_CPP)
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp/ggml"))
    (folder / "CMakeLists.txt").write_text(CMAKE_LISTS)  # ggml by itself lacks files in the package
    options = (
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=ON",
        "-DGGML_LLAMAFILE=ON",
        f"-DGGML_SOURCE={source}",
    )
    run(python, "-m", "cmake", "-S", folder, "-B", folder / "build", *options)
    targets = ("--target", "ggml-base", "ggml-cpu", "--parallel", str(os.cpu_count()))
    run(python, "-m", "cmake", "--build", folder / "build", *targets)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = make_python(folder / "python")
    steps: dict[str, Callable[[], None]] = {
        "zentorch": lambda: install(python, *ZENTORCH),
        "kt-kernel": lambda: install(python, *KT_KERNEL),
        "llama.cpp": lambda: build_ggml(python, folder / "ggml"),
    }
    failed = False
    for name, step in steps.items():
        try:
            step()
            print(f"{name}: there")
        except subprocess.CalledProcessError as error:
            print(f"{name}: not there, {error}")
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
