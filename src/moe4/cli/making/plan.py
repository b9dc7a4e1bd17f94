"""`moe4 plan`."""

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

EXAMPLES = (
    "moe4 plan Kimi-K2-Instruct OUT --calibration chats.jsonl",
    "moe4 plan Kimi-K2-Instruct --method rtn --no-time --json",
)


def command(
    source: options.PlannedSource,
    out: options.PlannedOut = None,
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
    memory_budget: options.PlannedBudget = None,
    revision: options.Revision = None,
    stream: options.Stream = False,
    allow_extra: options.AllowExtra = False,
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    time_it: options.TimeIt = True,
    as_json: options.AsJson = False,
) -> None:
    """Predict a run: size, memory, disk, time and problems.

    Reads the config and headers, not the weights. Exits with 1 if the run would fail.
    """
    resolved = moe4.resolve_recipe(
        recipe,
        method=method,
        group_size=group_size,
        targets=targets,
        num_sequences=num_sequences,
        sequence_tokens=sequence_length,
        seed=seed,
        memory_budget=memory_budget,
    )
    with progress("planning"):
        result = moe4.plan(
            source,
            out,
            recipe=resolved,
            calibration=calibration,
            calibration_split=calibration_split,
            show_sample=show_sample,
            revision=revision,
            stream=stream,
            allow_extra=allow_extra,
            family_as_is=family_as_is,
            trust_remote_code=trust_remote_code,
            time_it=time_it,
        )
    echo_result(result, as_json)
    if not result.ok:
        raise typer.Exit(1)
