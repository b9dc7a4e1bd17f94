"""`moe4 plan`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli import options
from moe4.cli.output import echo, echo_json
from moe4.cli.source import Revision


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of the source checkpoint, or of its config.json alone, or an id on the hub.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Where the release would go; only looked at.")
    ] = None,
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
    memory_budget: Annotated[
        str | None, typer.Option(help="The most memory it may need, such as 4GiB.")
    ] = None,
    revision: Revision = None,
    stream: options.Stream = False,
    allow_extra: options.AllowExtra = False,
    trust_remote_code: options.TrustRemoteCode = False,
    time_it: Annotated[
        bool, typer.Option("--time/--no-time", help="Solve one expert of made-up weights to tell the time.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what `quantize` would write, need and take, and every reason it would fail; exit 1 if so."""
    from moe4.quantize.forecast.forecast import describe, forecast
    from moe4.quantize.planning.options import resolve_recipe
    from moe4.quantize.planning.request import Request

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
        out=out or Path.cwd(),
        recipe=resolved,
        calibration=calibration,
        split=calibration_split,
        show_sample=show_sample,
        trust_remote_code=trust_remote_code,
        allow_extra=allow_extra,
        revision=revision,
        stream=stream,
    )
    result = forecast(request, has_out=out is not None, time_it=time_it)
    if as_json:
        echo_json(result)
    else:
        echo(describe(result))
        if "sample" in result["calibration"]:
            echo(f"\nthe first document as it would be calibrated on:\n{result['calibration']['sample']}")
    if not result["ok"]:
        raise typer.Exit(1)
