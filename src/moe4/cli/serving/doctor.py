"""`moe4 doctor`."""

import os
from typing import Annotated

import typer

from moe4.cli.output import echo, echo_json


def command(
    measure: Annotated[bool, typer.Option("--measure", help="Measure how fast memory is read, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what this machine offers: versions, vLLM, GPUs, memory, disk, hub, compiler, and the kernels' path.

    MOE4_KERNEL forces a path; a name that this machine cannot run is an error.
    """
    from moe4.serve.doctor import describe, diagnose

    found = diagnose(os.environ, measure=measure)
    if as_json:
        echo_json(found.as_dict(), indent=1)
    else:
        echo(describe(found))
