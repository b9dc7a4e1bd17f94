"""Make a release: plan, quantize, load its report."""

import os
from pathlib import Path
from typing import Any

from moe4.api.operation import (
    PathLike,
    RecipeArgument,
    Source,
    Text,
    operation,
    optional_path,
    say,
)
from moe4.api.results import Plan
from moe4.checkpoint.report_file import Report, parse_report, report_of
from moe4.progress import OnProgress, ignore
from moe4.recipe import resolve_recipe


@operation
def plan(
    source: Source,
    out: PathLike | None = None,
    *,
    recipe: RecipeArgument | None = None,
    calibration: PathLike | None = None,
    calibration_split: Text | None = None,
    show_sample: bool = False,
    revision: Text | None = None,
    stream: bool = False,
    allow_extra: bool = False,
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    time_it: bool = True,
) -> Plan:
    """Say what `quantize` would write, need and take, and every reason it would fail.

    source: a checkpoint's folder, one with its config.json alone, or a repository on the hub, of which only
    headers are read. out: only looked at. calibration, its split, revision, stream: as `quantize` takes them.
    show_sample: `calibration.sample` is the first document as it would be calibrated on. family_as_is: try a
    family that is not listed. time_it: solve one expert of made-up weights to tell the time.

    Raises CheckpointError or HubError if the source cannot be read at all, RecipeError or CalibrationError.

        >>> plan = moe4.plan("k2-tiny", recipe={"method": "rtn"})
        >>> plan.ok, plan.release.group_size
        (True, 64)
    """
    from moe4.quantize.forecast.forecast import describe, forecast
    from moe4.quantize.planning.request import Request

    request = Request(
        source=os.fspath(source),
        out=Path.cwd() if out is None else Path(out),
        recipe=resolve_recipe(recipe),
        calibration=optional_path(calibration),
        split=calibration_split,
        show_sample=show_sample,
        trust_remote_code=trust_remote_code,
        allow_extra=allow_extra,
        family_as_is=family_as_is,
        revision=revision,
        stream=stream,
    )
    found = forecast(request, has_out=out is not None, time_it=time_it)
    return Plan.of(found, describe(found))


@operation
def quantize(
    source: Source,
    out: PathLike,
    *,
    recipe: RecipeArgument | None = None,
    calibration: PathLike | None = None,
    calibration_split: Text | None = None,
    show_sample: bool = False,
    device: str = "cpu",
    revision: Text | None = None,
    stream: bool = False,
    resume: bool = False,
    allow_extra: bool = False,
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
    ranks: Any = None,
) -> Report:
    """Quantize the checkpoint in `source` to an INT4 (W4A16) release in `out`, layer by layer.

    source: a folder, or the id of a repository on the hub, at `revision`; stream: fetch its shards as layers
    need them, and drop them after.
    recipe: a Recipe, a dict of what differs from the default one, or a TOML file. calibration: JSON lines, a
    JSON array or Parquet of messages, conversations, prompt and response, or text; OWNER/NAME of a data set
    on the hub, with its split; "reference" is k2-tiny's own. show_sample: log the first document as the
    template renders it. device: cpu, cuda or cuda:N. resume: continue an unfinished run. allow_extra: leave
    out tensors that the model has no place for. family_as_is: try a family that is not listed. on_progress:
    hears each step as a `Progress`. ranks: `find_ranks()` in a script that torchrun starts.

    An exception, KeyboardInterrupt too, leaves what was committed; `resume=True` goes on from there. Raises
    CheckpointError, HubError, RecipeError, CalibrationError, OutputError, MemoryBudgetError or RankError.

        >>> report = moe4.quantize("k2-tiny", "release", recipe={"method": "rtn"})
        >>> report.release.num_bytes < report.source.num_bytes
        True
    """
    from moe4.quantize.planning.request import Request
    from moe4.quantize.reporting.progress import ProgressReporter
    from moe4.quantize.run.pipeline import quantize as run

    request = Request(
        source=os.fspath(source),
        out=Path(out),
        recipe=resolve_recipe(recipe),
        calibration=optional_path(calibration),
        split=calibration_split,
        show_sample=show_sample,
        resume=resume,
        device=device,
        trust_remote_code=trust_remote_code,
        allow_extra=allow_extra,
        family_as_is=family_as_is,
        revision=revision,
        stream=stream,
    )
    return report_of(run(request, ProgressReporter(on_progress, say), ranks), "the report")


@operation
def load_report(release: PathLike) -> Report:
    """Return what a run said of its release (`moe4-report.json`). Raises CheckpointError.

    >>> moe4.load_report("release").recipe.method
    'rtn'
    """
    return parse_report(Path(release))
