"""`moe4 probe`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.options import TrustRemoteCode


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of the release.")],
    source: Annotated[
        Path | None, typer.Option(help="Source checkpoint, to record its answers beside the release's.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; RELEASE/moe4-probe.json if not given."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Compute a release's expected answers in float32, and write them into moe4-probe.json.

    moe4 quantize writes the file already; this is for a release without one.
    """
    from moe4.probe.make import ProbeOptions, describe, make_probe, summarize

    options = ProbeOptions(
        release=release,
        source=source,
        output=output,
        force=force,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    result = summarize(make_probe(options, say=lambda text: typer.echo(text, err=True)))
    result["output"] = str(options.path)
    typer.echo(
        json.dumps(result, ensure_ascii=False) if as_json else f"{describe(result)}\nwritten   {options.path}"
    )
