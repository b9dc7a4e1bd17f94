"""`moe4 verify`."""

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

EXAMPLES = ("moe4 verify OUT", "moe4 verify OUT --source Kimi-K2-Instruct")


def command(
    out: options.CheckedRelease,
    source: options.OtherSource = None,
    revision: options.Revision = None,
    stream: options.StreamSource = False,
    device: options.Device = "cpu",
    family_as_is: options.FamilyAsIs = False,
    as_json: options.AsJson = False,
) -> None:
    """Check a release: its files, tensors, config and codes.

    Names every problem and exits with 1 if there is one. moe4-report.json lists the files; without it, verify
    fails, because it cannot check them.
    """
    with progress("checking") as shown:
        result = moe4.verify(
            out,
            source,
            revision=revision,
            stream=stream,
            device=device,
            family_as_is=family_as_is,
            on_progress=shown,
        )
    echo_result(result, as_json)
    if not result.ok:
        raise typer.Exit(1)
