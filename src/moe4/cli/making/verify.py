"""`moe4 verify`."""

from typing import Annotated

import typer

from moe4.cli.output import byte_progress, echo, echo_json
from moe4.cli.source import Revision, find


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the release, or its id on the hub.")],
    source: Annotated[
        str | None, typer.Option(help="Source checkpoint to compare with: a folder, or ID[@REVISION].")
    ] = None,
    revision: Revision = None,
    device: Annotated[str, typer.Option(help="Where to decode weights: cpu, cuda, cuda:1.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check a release: every file, every tensor, its config, its codes; exit 1 and name what is wrong.

    Files are held to the list in moe4-report.json; without it none can be checked, which is said.
    """
    from moe4.verify.checks import verify
    from moe4.verify.result import describe

    folder, original = find(out, revision), None if source is None else find(source)
    with byte_progress("checking") as on_progress:
        result = verify(folder, original, device=device, on_progress=on_progress)
    if as_json:
        echo_json(result.to_dict())
    else:
        echo(describe(result))
    if not result.ok:
        raise typer.Exit(1)
