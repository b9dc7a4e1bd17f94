"""What this machine offers vLLM: which build of it is installed, processors, memory, ports."""

import ipaddress
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe4.arguments import argument
from moe4.errors import ServeError
from moe4.machine.memory import total_memory_bytes
from moe4.machine.processors import Processors, read_processors
from moe4.vllm_facts.distribution import has_own_name, is_for_cpus

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine, as far as vLLM's options depend on it.

    device: what the installed vLLM was built for.
    vllm: what starts its command line.
    processors: those this process may use, and how much of them.
    memory_bytes: all there is.
    """

    device: Device
    vllm: tuple[str, ...]
    processors: Processors
    memory_bytes: int


def inspect_host() -> Host:
    """Look at this machine. Raises MissingDependencyError if vLLM is not installed."""
    return Host(
        device="cpu" if is_for_cpus() else "gpu",
        vllm=_vllm_program(),
        processors=read_processors(),
        memory_bytes=total_memory_bytes(),
    )


def find_compiler(environment: Mapping[str, str]) -> str | None:
    """Return the C++ compiler that torch.compile would call, CXX's, g++ or clang++; None without one."""
    asked = environment.get("CXX")
    names = (asked,) if asked else ("g++", "clang++")
    return next((found for name in names if (found := shutil.which(name)) is not None), None)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(host: str, port: int) -> int:
    """Return `port`, or a free one if it is 0. Raises ServeError if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise ServeError(f"port {port} is not in 0..65535") from None
        except OSError as error:
            raise ServeError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with "
                f"{argument('host')} or {argument('port')}"
            ) from None
        return int(probe.getsockname()[1])


def _vllm_program() -> tuple[str, ...]:
    """Return what starts vLLM's command line in the environment that runs moe4."""
    if not has_own_name():
        return (sys.executable, "-m", "moe4.vllm_plugin.cli")  # its docstring says why
    beside = Path(sys.executable).parent / "vllm"
    if beside.is_file():
        return (str(beside),)
    return (sys.executable, "-m", "vllm.entrypoints.cli.main")  # a folder on PYTHONPATH has no programs
