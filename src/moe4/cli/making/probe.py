"""`moe4 probe`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.options import TrustRemoteCode
from moe4.cli.output import echo, echo_json
from moe4.cli.source import Revision, find


def command(
    release: Annotated[
        str | None,
        typer.Argument(
            metavar="RELEASE", help="Folder of the release, or its id on the hub; with --url also a file."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask the server at this address for the expected answers."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --url, name of the model; the first served if not given.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="With --url, seconds one answer may take.")] = 120.0,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="With --url, do not check the server's certificate.")
    ] = False,
    print_script: Annotated[
        bool,
        typer.Option(
            "--print-script",
            help="Print the check of a server as one file of Python that needs no moe4.",
        ),
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            help="Source checkpoint, to record its answers beside the release's: a folder, or ID[@REVISION]."
        ),
    ] = None,
    revision: Revision = None,
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

    moe4 quantize writes the file already; this is for a release without one. With --url nothing is computed
    or written: a running server is asked for these answers, and the exit code is 1 if it fails. An API key is
    taken from the variable VLLM_API_KEY.
    """
    from moe4.errors import ProbeError

    if print_script:
        from moe4.probe.ask import script_text

        echo(script_text(), nl=False)
        return
    if release is None:
        raise ProbeError("name the release: moe4 probe RELEASE")
    folder = find(release, revision)
    if url is not None:
        _ask(folder, url, model, timeout, insecure, as_json)
        return
    from moe4.probe.make import ProbeOptions, describe, make_probe, summarize

    if output is None and folder != Path(release):
        raise ProbeError(f"{release} lies on the hub; say where the answers are to go: --output FILE")
    options = ProbeOptions(
        release=folder,
        source=None if source is None else find(source),
        output=output,
        force=force,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    result = summarize(make_probe(options, say=lambda text: echo(text, err=True)))
    data = {**result.to_dict(), "output": str(options.path)}
    if as_json:
        echo_json(data, ensure_ascii=False)
    else:
        echo(f"{describe(result)}\nwritten   {options.path}")


def _ask(release: Path, url: str, model: str | None, timeout: float, insecure: bool, as_json: bool) -> None:
    from moe4.probe.ask import ask_server, describe, showing_progress

    with showing_progress() as on_progress:
        result = ask_server(
            release, url, model=model, timeout=timeout, verify=not insecure, on_progress=on_progress
        )
    if as_json:
        echo_json(result)
    else:
        echo(describe(result))
    if not result["ok"]:
        raise typer.Exit(1)
