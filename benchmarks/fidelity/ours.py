"""moe4's own commands on the reference mixture, and the seconds that they take."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fidelity.algorithms import GROUP_SIZE

NO_GAIN = "tuning did not help"


class CommandError(Exception):
    """A command of moe4 failed; the message is its own last line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """The documents of the reference mixture that a command draws, and the device it computes on."""

    num_sequences: int
    seed: int = 0
    device: str = "cpu"

    def options(self) -> list[str]:
        numbers = ["--num-sequences", str(self.num_sequences), "--seed", str(self.seed)]
        return ["--calibration", "reference", *numbers, "--device", self.device]


def quantize(model: Path, out: Path, documents: Documents) -> float:
    """Run `moe4 quantize` with its defaults but for the group size; return seconds. Raises CommandError."""
    started = time.monotonic()
    _run(["quantize", str(model), str(out), "--group-size", str(GROUP_SIZE), *documents.options()])
    return time.monotonic() - started


def tune(model: Path, release: Path, out: Path, documents: Documents) -> tuple[Path, float]:
    """Run `moe4 tune` with its defaults; return the better release and the seconds. Raises CommandError.

    The better one is `out`; or `release`, where tuning does not help and the command says to use that.
    """
    started = time.monotonic()
    try:
        _run(["tune", str(model), str(release), str(out), *documents.options()])
    except CommandError as error:
        if NO_GAIN not in str(error):
            raise
        out = release
    return out, time.monotonic() - started


def _run(words: list[str]) -> None:
    command = [sys.executable, "-m", "moe4", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise CommandError(lines[-1] if lines else f"moe4 {words[0]}: exit code {result.returncode}")
