"""`moe4 report`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo
from moe4.cli.progress import progress

EXAMPLES = ("moe4 report OUT", "moe4 report OUT --output report.html")

Output: TypeAlias = Annotated[
    Path | None, typer.Option("--output", "-o", help="HTML file to write; OUT/proof/report.html by default.")
]


def command(out: options.MadeRelease, proof: options.ProofFolder = None, output: Output = None) -> None:
    """Write a page with all results of a release.

    Scores, errors, experts and the run. The page needs no network and no scripts; it suits phones, dark
    mode and paper.
    """
    with progress("reading"):
        path = moe4.report(out, proof=proof, output=output)
    echo(path)
