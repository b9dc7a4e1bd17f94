"""`moe4 smoke`."""

from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo, echo_json
from moe4.cli.progress import progress

EXAMPLES = (
    "moe4 smoke http://127.0.0.1:8000",
    "moe4 smoke https://k2.example.com --probe OUT --json",
)

Probe: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="RELEASE",
        help="Also check the expected answers of this release, or of a moe4-probe.json.",
    ),
]


def command(
    url: options.Url,
    model: options.ServedModel = None,
    probe: Probe = None,
    timeout: options.Timeout = 120.0,
    insecure: options.Insecure = False,
    as_json: options.AsJson = False,
) -> None:
    """Check a server: models, chat, streaming, a tool call.

    Exits with 1 if any of them is wrong. The variable VLLM_API_KEY holds the API key.
    """
    with progress("asking the server") as shown:

        def tell(outcome: object) -> None:
            if not as_json:
                with shown.aside():
                    echo(outcome)

        result = moe4.smoke(
            url,
            model=model,
            probe=probe,
            timeout=timeout,
            insecure=insecure,
            on_outcome=tell,
        )
    if as_json:
        echo_json(result.as_dict())
    if not result.ok:
        raise typer.Exit(1)
