"""`moe4 doctor`."""

from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

EXAMPLES = ("moe4 doctor", "moe4 doctor --measure --json")

Measure: TypeAlias = Annotated[bool, typer.Option("--measure", help="Measure how fast memory is read, too.")]


def command(measure: Measure = False, as_json: options.AsJson = False) -> None:
    """Say what this machine offers: versions, vLLM, GPUs, memory, disk, hub, compiler, and the kernels' path.

    MOE4_KERNEL forces a path; a name that this machine cannot run is an error.
    """
    with progress("looking at this machine"):
        found = moe4.doctor(measure=measure)
    echo_result(found, as_json, indent=1)
