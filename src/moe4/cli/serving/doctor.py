"""`moe4 doctor`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from moe4.cli.output import echo, echo_json

if TYPE_CHECKING:
    from moe4.serve.binding import Binding

NO_COMPILER = (
    "none for C++: `moe4 serve` needs none, but --no-enforce-eager and --pipeline-parallel-size, which "
    "compile, do not work; install g++"
)


def command(
    measure: Annotated[bool, typer.Option("--measure", help="Measure how fast memory is read, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what this machine offers the CPU kernels, and which path they take and why.

    MOE4_KERNEL forces a path; a name that this machine cannot run is an error.
    """
    from dataclasses import asdict

    from moe4.kernels.inspection import inspect_machine, measure_read_rate
    from moe4.machine.processors import read_processors
    from moe4.serve.binding import choose_binding
    from moe4.serve.host import find_compiler

    processors = read_processors()
    binding = choose_binding(processors, 1, os.environ)
    compiler = find_compiler(os.environ)
    machine = inspect_machine()
    rate = measure_read_rate() if measure else None
    if as_json:
        found = {**asdict(machine), "read_bytes_per_second": rate, "serve": asdict(binding)}
        found["cpp_compiler"] = compiler
        echo_json(found, indent=1)
        return
    lines = [
        f"processor  {machine.processor} ({machine.architecture}), {machine.cpus} CPUs for this process, "
        f"NUMA nodes: {machine.numa_nodes}",
        f"memory     {machine.memory_bytes / 2**30:.1f} GiB",
        f"threads    {machine.threads}, of {machine.thread_runtime}",
        f"serving    {_describe(binding)}",
        f"compiler   {compiler or NO_COMPILER}",
    ]
    if rate is not None:
        lines.append(f"reading    {rate / 1e9:.1f} GB/s")
    for path in machine.paths:
        state = "no: " + path.obstacle if path.obstacle else "yes"
        if path.on_request and not path.obstacle:
            state += f", on request only: {path.on_request}"
        taken = f", taken: {machine.reason}" if path.name == machine.selected else ""
        lines.append(f"path       {path.name:12} {state}{taken}")
    echo("\n".join(lines))


def _describe(binding: "Binding") -> str:
    threads = "vLLM's own choice" if binding.num_threads is None else f"{binding.num_threads} threads"
    variables = "".join(f" {name}={value}" for name, value in binding.variables.items())
    return f"{threads}: {binding.reason};{variables}" if variables else f"{threads}: {binding.reason}"
