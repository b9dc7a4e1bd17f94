"""`moe4 quantize`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from moe4.cli import options
from moe4.cli.output import echo, echo_json
from moe4.cli.source import Revision
from moe4.errors import Moe4Error
from moe4.escape import shell_line

if TYPE_CHECKING:
    from moe4.quantize.transfer.ranks import Ranks


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of the source checkpoint (BF16, FP8, INT8 or INT4), or its id on the hub.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the release; new or empty.")],
    recipe: options.Recipe = None,
    method: options.Method = None,
    group_size: options.GroupSize = None,
    targets: options.Targets = None,
    calibration: options.Calibration = None,
    calibration_split: options.CalibrationSplit = None,
    num_sequences: options.NumSequences = None,
    sequence_length: options.SequenceLength = None,
    seed: options.Seed = None,
    show_sample: options.ShowSample = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    memory_budget: Annotated[
        str | None, typer.Option(help="Refuse to begin what may need more memory than this, such as 4GiB.")
    ] = None,
    revision: Revision = None,
    stream: options.Stream = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run in OUT.")] = False,
    allow_extra: options.AllowExtra = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Quantize the checkpoint in SOURCE to an INT4 (W4A16) release in OUT, layer by layer."""
    from moe4.quantize.planning.options import resolve_recipe
    from moe4.quantize.planning.request import Request
    from moe4.quantize.reporting.progress import ProgressReporter
    from moe4.quantize.reporting.run_report import describe
    from moe4.quantize.run.pipeline import quantize
    from moe4.quantize.transfer.ranks import Ranks

    resolved = resolve_recipe(
        recipe,
        method=method.value if method else None,
        group_size=group_size,
        targets=targets.value if targets else None,
        num_sequences=num_sequences,
        sequence_tokens=sequence_length,
        seed=seed,
        memory_budget=memory_budget,
    )
    request = Request(
        source=source,
        out=out,
        recipe=resolved,
        calibration=calibration,
        split=calibration_split,
        show_sample=show_sample,
        resume=resume,
        device=device,
        trust_remote_code=trust_remote_code,
        allow_extra=allow_extra,
        revision=revision,
        stream=stream,
    )
    ranks = Ranks.from_environment()
    try:
        with ProgressReporter(quiet=not ranks.is_first) as progress:
            report = quantize(request, progress, ranks)
    except KeyboardInterrupt:
        again = [argument for argument in sys.argv[1:] if argument != "--resume"]
        command = "moe4" if ranks.size == 1 else "torchrun ... -m moe4"
        if ranks.may_report():
            echo(f"moe4: interrupted; continue with: {command} {shell_line(again)} --resume", err=True)
        _leave(130, ranks)
    except Moe4Error as error:
        if ranks.size == 1:
            raise
        if ranks.may_report():
            echo(f"moe4: error: {error}", err=True)
        _leave(error.exit_code, ranks)
    if ranks.is_first:
        if as_json:
            echo_json(report)
        else:
            echo(describe(report))


def _leave(exit_code: int, ranks: "Ranks") -> NoReturn:
    """End the process; one of several at once, for taking its connections down could wait for the others."""
    if ranks.size == 1:
        raise typer.Exit(exit_code) from None
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
