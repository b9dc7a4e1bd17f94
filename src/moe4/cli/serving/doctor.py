"""`moe4 doctor`."""

from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

EXAMPLES = ("moe4 doctor", "moe4 doctor --measure --json")

Measure: TypeAlias = Annotated[bool, typer.Option("--measure", help="Also measure how fast memory is read.")]


def command(measure: Measure = False, as_json: options.AsJson = False) -> None:
    """Show this machine's hardware, software and kernel path.

    Shows versions, vLLM, the libraries that are missing and how to install them, GPUs, memory, disk, hub,
    compiler and the path of the CPU kernels. The variable MOE4_KERNEL forces a path; it is an error if this
    machine cannot run it.
    """
    with progress("looking at this machine"):
        found = moe4.doctor(measure=measure)
    echo_result(found, as_json, indent=1)
