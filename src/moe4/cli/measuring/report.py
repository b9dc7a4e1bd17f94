"""`moe4 report`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.output import echo


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the release.")],
    proof: Annotated[
        Path | None,
        typer.Option(help="Folder of evaluation.json and the other results; OUT/proof if not given."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write; OUT/proof/report.html.")
    ] = None,
) -> None:
    """Write one page with all that was measured of a release: scores, errors, experts, the run.

    It needs no network and no script, and reads well on a phone, in the dark and on paper.
    """
    from moe4.checkpoint.report_file import PROOF_FOLDER
    from moe4.files.durable import make_folder, write_output
    from moe4.publish.proof import read_proof
    from moe4.publish.report_page import render_report

    found = read_proof(out, proof)
    path = output or out / PROOF_FOLDER / "report.html"
    make_folder(path.parent)
    write_output(path, render_report(found))
    echo(str(path))
