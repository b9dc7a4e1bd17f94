"""`moe4 probe`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo, echo_result
from moe4.cli.progress import progress
from moe4.errors import ProbeError

if TYPE_CHECKING:
    from moe4.api.results import AnswerCheck, ProbeResult

ASK = "Ask a server"
MAKE = "Make the file"
EXAMPLES = (
    "moe4 probe OUT --url http://127.0.0.1:8000",
    "moe4 probe OUT --source Kimi-K2-Instruct",
    "moe4 probe --print-script > check.py",
)

Release: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="RELEASE", help="Folder of the release, or its id on the hub; with --url also a file."
    ),
]
Url: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Address of the server to ask.", rich_help_panel=ASK),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Model name; by default the first that the server lists.", rich_help_panel=ASK),
]
Timeout: TypeAlias = Annotated[
    float, typer.Option(help="Seconds to wait for an answer.", rich_help_panel=ASK)
]
Insecure: TypeAlias = Annotated[
    bool, typer.Option("--insecure", help="Do not check the server's certificate.", rich_help_panel=ASK)
]
PrintScript: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--print-script",
        help="Print the check as a Python script that does not need moe4.",
        rich_help_panel=ASK,
    ),
]
RecordedSource: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Source checkpoint, to record its answers as well: a folder, or ID[@REVISION].",
        rich_help_panel=MAKE,
    ),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="File to write; RELEASE/moe4-probe.json by default.", rich_help_panel=MAKE
    ),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite the file.", rich_help_panel=MAKE)]


def command(
    release: Release = None,
    url: Url = None,
    model: Model = None,
    timeout: Timeout = 120.0,
    insecure: Insecure = False,
    print_script: PrintScript = False,
    source: RecordedSource = None,
    revision: options.Revision = None,
    output: Output = None,
    force: Force = False,
    device: options.Device = "cpu",
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Compute a release's expected answers, or ask a server for them.

    moe4 quantize already writes moe4-probe.json; this command writes it for a release that has none, in
    float32.

    With --url it writes nothing. It asks a running server for the answers, and exits with 1 if they are
    wrong. The variable VLLM_API_KEY holds the API key.
    """
    if print_script:
        echo(moe4.probe_script(), nl=False)
        return
    if release is None:
        raise ProbeError("name the release: moe4 probe RELEASE")
    operation: Callable[..., ProbeResult | AnswerCheck]
    if url is None:
        operation = partial(
            moe4.probe,
            release,
            source=source,
            output=output,
            force=force,
            device=device,
            family_as_is=family_as_is,
            trust_remote_code=trust_remote_code,
        )
    else:
        operation = partial(moe4.check_answers, release, url, model=model, timeout=timeout, insecure=insecure)
    with progress("loading") as shown:
        result = operation(revision=revision, on_progress=shown)
    echo_result(result, as_json, ensure_ascii=False)
    if not result.ok:
        raise typer.Exit(1)
