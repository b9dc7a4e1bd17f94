"""`moe4 smoke`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.output import echo, echo_json
from moe4.escape import visible


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the server, with or without /v1.")],
    model: Annotated[
        str | None, typer.Option(help="Name of the model; the first served if not given.")
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="RELEASE",
            help="Also ask for the expected answers of this release, or of a moe4-probe.json.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds one answer may take.")] = 120.0,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Do not check the server's certificate.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Ask a server its models, a chat, a stream with usage and a tool call; exit 1 if one is wrong.

    An API key is taken from the variable VLLM_API_KEY.
    """
    from moe4.deploy.smoke import SmokeTest

    test = SmokeTest(
        url,
        model=model,
        api_key=os.environ.get("VLLM_API_KEY"),
        timeout=timeout,
        verify=not insecure,
        probe=probe,
    )
    outcomes = []
    for outcome in test.run():
        outcomes.append(outcome)
        if not as_json:
            verdict = "ok" if outcome.ok else "WRONG"
            echo(visible(f"{outcome.name}: {verdict}, {outcome.seconds:.1f} s: {outcome.detail}"))
    ok = all(outcome.ok for outcome in outcomes)
    if as_json:
        checks = [asdict(outcome) for outcome in outcomes]
        echo_json({"url": url, "model": test.model, "ok": ok, "checks": checks})
    if not ok:
        raise typer.Exit(1)
