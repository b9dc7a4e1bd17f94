"""`moe4 quantize`."""

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result, say
from moe4.cli.progress import Shown, progress
from moe4.errors import INTERRUPTED_EXIT_CODE, Moe4Error
from moe4.escape import shell_line

if TYPE_CHECKING:
    from moe4.quantize.transfer.ranks import Ranks

EXAMPLES = (
    "moe4 quantize Kimi-K2-Instruct OUT --calibration chats.jsonl",
    "moe4 quantize Kimi-K2-Instruct OUT --method rtn --group-size 32",
    "moe4 quantize Kimi-K2-Instruct OUT --calibration chats.jsonl --device cuda --resume",
    "torchrun --nproc-per-node 8 -m moe4 quantize Kimi-K2-Instruct OUT --calibration chats.jsonl",
)


def command(
    source: options.Source,
    out: options.Out,
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
    device: options.Device = "cpu",
    memory_budget: options.MemoryBudget = None,
    revision: options.Revision = None,
    stream: options.Stream = False,
    resume: options.Resume = False,
    allow_extra: options.AllowExtra = False,
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Quantize a checkpoint to INT4 (W4A16), layer by layer."""
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
    with progress("loading") as shown:
        ranks = _join(shown)
        try:
            report = moe4.quantize(
                source,
                out,
                recipe=resolved,
                calibration=calibration,
                calibration_split=calibration_split,
                show_sample=show_sample,
                device=device,
                revision=revision,
                stream=stream,
                resume=resume,
                allow_extra=allow_extra,
                family_as_is=family_as_is,
                trust_remote_code=trust_remote_code,
                on_progress=shown,
                ranks=ranks,
            )
        except (KeyboardInterrupt, Moe4Error) as error:
            shown.stop()
            _end(error, ranks)
    if ranks.is_first:
        echo_result(report, as_json)


def _join(shown: Shown) -> "Ranks":
    """Find the other processes of the run; only the first one shows progress."""
    ranks = moe4.find_ranks()
    if not ranks.is_first:
        shown.stop()
    moe4.own_process(ranks)
    return ranks


def _end(error: KeyboardInterrupt | Moe4Error, ranks: "Ranks") -> NoReturn:
    """End the process; one of several at once, for taking its connections down could wait for the others."""
    if isinstance(error, Moe4Error):
        if ranks.size == 1:
            raise error
        line, exit_code = f"moe4: error: {error}", error.exit_code
    else:
        again = [argument for argument in sys.argv[1:] if argument != "--resume"]
        program = "moe4" if ranks.size == 1 else "torchrun ... -m moe4"
        line = f"moe4: interrupted; continue with: {program} {shell_line(again)} --resume"
        exit_code = INTERRUPTED_EXIT_CODE
    if ranks.may_report():
        say(line)
    if ranks.size == 1:
        raise typer.Exit(exit_code) from None
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
