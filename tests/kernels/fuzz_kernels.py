"""Fuzz this machine's kernel paths with libFuzzer, under the address and undefined-behaviour sanitizers.

    python tests/kernels/fuzz_kernels.py [--seconds 60]     (`make fuzz SECONDS=60`)

Needs clang++ with its fuzzing runtime. Inputs that reach something new are kept in build/fuzz/corpus, where
the next run begins; one that fails is written to build/fuzz, and its name is printed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from native_build import NoFuzzerError, build_fuzzer, paths_here

FOLDER = Path(__file__).resolve().parents[2] / "build" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="0: until something is found")
    arguments = parser.parse_args()
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    try:
        program = build_fuzzer(FOLDER, paths_here())
    except NoFuzzerError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    options = [f"-max_total_time={arguments.seconds}", "-max_len=64", "-rss_limit_mb=4096"]
    return subprocess.run(
        [str(program), str(corpus), *options, f"-artifact_prefix={FOLDER}/"], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
