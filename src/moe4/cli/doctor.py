"""`moe4 doctor`."""

import json
from typing import Annotated

import typer


def command(
    measure: Annotated[bool, typer.Option("--measure", help="Measure how fast memory is read, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what this machine offers the CPU kernels, and which path they take and why.

    MOE4_KERNEL forces a path; a name that this machine cannot run is an error.
    """
    from dataclasses import asdict

    from moe4.kernels.machine import inspect_machine, measure_read_rate

    machine = inspect_machine()
    rate = measure_read_rate() if measure else None
    if as_json:
        typer.echo(json.dumps({**asdict(machine), "read_bytes_per_second": rate}, indent=1))
        return
    lines = [
        f"processor  {machine.processor} ({machine.architecture}), {machine.cpus} CPUs for this process, "
        f"NUMA nodes: {machine.numa_nodes}",
        f"memory     {machine.memory_bytes / 2**30:.1f} GiB",
        f"threads    {machine.threads}, of {machine.thread_runtime}",
    ]
    if rate is not None:
        lines.append(f"reading    {rate / 1e9:.1f} GB/s")
    for path in machine.paths:
        state = "no: " + path.obstacle if path.obstacle else "yes"
        if path.on_request and not path.obstacle:
            state += f", on request only: {path.on_request}"
        taken = f", taken: {machine.reason}" if path.name == machine.selected else ""
        lines.append(f"path       {path.name:12} {state}{taken}")
    typer.echo("\n".join(lines))
