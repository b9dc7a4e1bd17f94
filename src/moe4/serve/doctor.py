"""`moe4 doctor`: what this machine offers moe4 and vLLM, and what is missing. It needs no extra.

Nothing here changes anything; the hub is asked whether it answers, with a short wait.
"""

import importlib.metadata
import platform
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from moe4 import __version__
from moe4.errors import MissingDependencyError
from moe4.extras import Missing, list_missing
from moe4.kernels.inspection import Machine, inspect_machine, measure_read_rate
from moe4.machine.gpus import Gpu, list_gpus
from moe4.machine.memory import available_memory_bytes
from moe4.machine.processors import read_processors
from moe4.serve.binding import Binding, choose_binding
from moe4.serve.host import find_compiler
from moe4.strict_json import JsonObject
from moe4.units import GIB, format_bytes
from moe4.vllm_facts.distribution import find_distribution, is_for_cpus
from moe4.vllm_facts.versions import TESTED_VLLM

HUB = "https://huggingface.co"
HUB_SECONDS = 5
PACKAGES = ("torch", "transformers", "safetensors", "compressed-tensors", "lm_eval", "openai")
NO_COMPILER = (
    "none for C++: `moe4 serve` needs none, but --no-enforce-eager and --pipeline-parallel-size, which "
    "compile, do not work; install g++"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vllm:
    """The vLLM that is installed. distribution: None where a folder on PYTHONPATH brings it."""

    distribution: str | None
    version: str | None
    device: str

    def describe(self) -> str:
        """Return it in words, with the version that moe4 is tested with where it is another."""
        if self.distribution is None:
            return f"from a folder on PYTHONPATH, for {self.device}s"
        known = "" if (self.version or "").startswith(TESTED_VLLM) else f"; moe4 is tested with {TESTED_VLLM}"
        return f"{self.distribution} {self.version}, built for {self.device}s{known}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """A folder that moe4 or vLLM writes to, and the room there."""

    use: str
    folder: str
    free_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """The model hub: whether it answers, if not why, and whether a token is there."""

    address: str
    obstacle: str | None
    has_token: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Everything `moe4 doctor` says; None for what is not there or was not measured.

    missing: the libraries of moe4's extras that are not installed, and what installs them.
    """

    machine: Machine
    available_bytes: int
    serve: Binding
    compiler: str | None
    versions: dict[str, str]
    vllm: Vllm | None
    missing: list[Missing]
    gpus: list[Gpu]
    disks: list[Disk]
    hub: Hub
    read_bytes_per_second: float | None = None

    def as_dict(self) -> JsonObject:
        """Return plain JSON types."""
        found = asdict(self)
        found["cpp_compiler"] = found.pop("compiler")
        return {**found.pop("machine"), **found}

    def __str__(self) -> str:
        return describe(self)


def diagnose(environment: Mapping[str, str], *, measure: bool = False) -> Diagnosis:
    """Look at everything. Raises KernelError if MOE4_KERNEL names a path this machine cannot run."""
    processors = read_processors()
    return Diagnosis(
        machine=inspect_machine(),
        available_bytes=available_memory_bytes(),
        serve=choose_binding(processors, 1, environment),
        compiler=find_compiler(environment),
        versions=_versions(),
        vllm=_vllm(),
        missing=list_missing(),
        gpus=list_gpus(),
        disks=_disks(environment),
        hub=_hub(environment),
        read_bytes_per_second=measure_read_rate() if measure else None,
    )


def _versions() -> dict[str, str]:
    found = {"moe4": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _vllm() -> Vllm | None:
    try:
        name = find_distribution()
    except MissingDependencyError:
        return None
    version = importlib.metadata.version(name) if name else None
    return Vllm(distribution=name, version=version, device="CPU" if is_for_cpus() else "GPU")


def _disks(environment: Mapping[str, str]) -> list[Disk]:
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    uses = {
        "here": Path.cwd(),
        "for the hub's cache": home,
        "for temporary files": Path(tempfile.gettempdir()),
    }
    found = []
    for use, folder in uses.items():
        there = next((place for place in (folder, *folder.parents) if place.is_dir()), None)
        if there is not None:
            found.append(Disk(use=use, folder=str(folder), free_bytes=shutil.disk_usage(there).free))
    return found


def _hub(environment: Mapping[str, str]) -> Hub:
    address = environment.get("HF_ENDPOINT") or HUB
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    has_token = bool(environment.get("HF_TOKEN")) or (home / "token").is_file()
    return Hub(address=address, obstacle=_hub_obstacle(address, environment), has_token=has_token)


def _hub_obstacle(address: str, environment: Mapping[str, str]) -> str | None:
    """Return why the hub cannot be used, or None."""
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE forbids it"
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        return "HF_ENDPOINT is not an address such as https://huggingface.co"
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # it answers
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error)


def describe(found: Diagnosis) -> str:
    """Return the diagnosis as text."""
    machine = found.machine
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    lines = [
        f"versions   {versions}",
        f"vllm       {found.vllm.describe() if found.vllm else 'not installed'}",
        *(f"missing    {', '.join(missing.libraries)}: {missing.command}" for missing in found.missing),
        f"processor  {machine.processor} ({machine.architecture}), {machine.cpus} CPUs for this process, "
        f"NUMA nodes: {machine.numa_nodes}",
        f"memory     {machine.memory_bytes / GIB:.1f} GiB, {found.available_bytes / GIB:.1f} GiB of it free",
        *([f"gpu        {gpu.name}, {gpu.memory_bytes / GIB:.1f} GiB" for gpu in found.gpus] or [NO_GPU]),
        *(
            f"disk       {disk.use}: {format_bytes(disk.free_bytes)} free, {disk.folder}"
            for disk in found.disks
        ),
        f"hub        {_describe_hub(found.hub)}",
        f"threads    {_describe_threads(machine)}",
        f"serving    {_describe_binding(found.serve)}",
        f"compiler   {found.compiler or NO_COMPILER}",
    ]
    if found.read_bytes_per_second is not None:
        lines.append(f"reading    {found.read_bytes_per_second / 1e9:.1f} GB/s")
    for path in machine.paths:
        state = "no: " + path.obstacle if path.obstacle else "yes"
        if path.on_request and not path.obstacle:
            state += f", on request only: {path.on_request}"
        taken = f", taken: {machine.reason}" if path.name == machine.selected else ""
        lines.append(f"path       {path.name:14} {state}{taken}")
    return "\n".join(lines)


NO_GPU = "gpu        none that a driver reports"


def _describe_threads(machine: Machine) -> str:
    if machine.threads is None:
        return "as many as PyTorch takes, which is not installed"
    return f"{machine.threads}, of {machine.thread_runtime}"


def _describe_hub(hub: Hub) -> str:
    token = "a token is there" if hub.has_token else "no token: private repositories need HF_TOKEN"
    state = "answers" if hub.obstacle is None else f"cannot be used: {hub.obstacle}"
    return f"{hub.address} {state}; {token}"


def _describe_binding(binding: Binding) -> str:
    threads = "vLLM's own choice" if binding.num_threads is None else f"{binding.num_threads} threads"
    variables = "".join(f" {name}={value}" for name, value in binding.variables.items())
    return f"{threads}: {binding.reason};{variables}" if variables else f"{threads}: {binding.reason}"
