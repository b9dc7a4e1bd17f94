"""Where commands find a checkpoint or release: a folder, or a repository on the hub."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.output import byte_progress, echo

Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a repository on the hub; main if not given."),
]


def find(where: str, revision: str | None = None) -> Path:
    """Return the folder of what a user named, downloaded if it lies on the hub."""
    from moe4.hub.locate import locate

    with byte_progress("downloading") as on_progress:
        return locate(
            where, revision, say=lambda text: echo(f"moe4: {text}", err=True), on_progress=on_progress
        )
