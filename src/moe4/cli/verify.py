"""`moe4 verify`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.output import echo


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the release.")],
    source: Annotated[Path | None, typer.Option(help="Source checkpoint to compare with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check a release: every file, every tensor, its config, its codes; exit 1 and name what is wrong.

    Files are held to the list in moe4-report.json; without it none can be checked, which is said.
    """
    from moe4.quantize.verify import describe, verify

    result = verify(out, source)
    echo(json.dumps(result) if as_json else describe(result))
    if not result["ok"]:
        raise typer.Exit(1)
