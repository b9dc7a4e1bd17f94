"""Make a release: plan, quantize, tune, load the report."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from moe4.api.operation import (
    PathLike,
    Positive,
    RecipeArgument,
    Source,
    Text,
    open_source,
    operation,
    optional_path,
    say,
)
from moe4.checkpoint.report_file import Report, read_report
from moe4.progress import OnProgress, ignore
from moe4.recipe import resolve_recipe

if TYPE_CHECKING:
    from moe4.quantize.forecast.plan import Plan


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
) -> "Plan":
    """Predict a `quantize` run: the release's size, memory, disk and time, and every reason it would fail.

    source: folder of a checkpoint or of its config.json alone, or an id on the hub, where only headers are
    read. out: where the release would go; nothing is written. show_sample: `calibration.sample` of the result
    is the first document as the template renders it. time_it: solve one expert of random weights to estimate
    the time. recipe, calibration, calibration_split, revision, stream, allow_extra, family_as_is,
    trust_remote_code: as in `quantize`.

    Raises CheckpointError or HubError if the source cannot be read at all, RecipeError and CalibrationError.

        >>> plan = moe4.plan("k2-tiny", recipe={"method": "rtn"})
        >>> plan.ok, plan.release.group_size
        (True, 64)
    """
    from moe4.quantize.forecast.forecast import forecast
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
    return forecast(request, has_out=out is not None, time_it=time_it)


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

    source: a folder, or an id on the hub, at `revision`. stream: download its shards as layers need them, and
    delete them after use. out: a new or empty folder. recipe: a Recipe, a dict of the keys that differ from
    the default, or a TOML file. calibration: a file of JSON lines, a JSON array or Parquet, or OWNER/NAME of
    a data set on the hub, with calibration_split; "reference" is k2-tiny's data. show_sample: log the first
    document as the template renders it. device: cpu, cuda or cuda:N. resume: continue an unfinished run.
    allow_extra: leave out tensors that the model has no place for. family_as_is: try a family that is not
    listed. trust_remote_code: let the tokenizer run the checkpoint's code. on_progress: called with a
    `Progress` at each step. ranks: `find_ranks()`, in a script that torchrun starts.

    After any exception, KeyboardInterrupt included, `resume=True` continues from the last commit. Raises
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
    return run(request, ProgressReporter(on_progress, say), ranks)


@operation
def tune(
    source: Source,
    release: PathLike,
    out: PathLike,
    *,
    calibration: PathLike | None = None,
    num_sequences: Positive = 768,
    max_tokens: Annotated[int, Field(ge=2)] = 1024,
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0,
    epochs: Positive = 4,
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] = 1e-3,
    batch_tokens: Positive = 8192,
    device: str = "cpu",
    revision: Text | None = None,
    resume: bool = False,
    work: PathLike | None = None,
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> Report:
    """Learn the scales of a release's experts from its source's answers; write the tuned release to `out`.

    The codes, the format and the size stay. source, release: what `quantize` read and wrote. calibration,
    seed, device, revision, resume, family_as_is, trust_remote_code, on_progress: as in `quantize`.
    num_sequences: documents to draw, a tenth of which is not learned from: on it the KL divergence is
    measured before and after. max_tokens: of a document. epochs: passes over the text. learning_rate: of
    Adam, for a scale's relative change. batch_tokens: of a step, at least. work: folder for the source's
    hidden states.

    Raises CheckpointError, HubError, CalibrationError, MemoryBudgetError, OutputError, ResumeError, or
    EvaluationError where tuning did not help: then nothing is written.

        >>> report = moe4.tune("k2-tiny", "release", "tuned", calibration="reference")
        >>> report.tuning.kl_after < report.tuning.kl_before
        True
    """
    from moe4.tune.run import TuneOptions
    from moe4.tune.run import tune as run

    options = TuneOptions(
        source=open_source(source, revision, on_progress),
        release=Path(release),
        out=Path(out),
        calibration=optional_path(calibration),
        num_sequences=num_sequences,
        max_sequence_tokens=max_tokens,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        device=device,
        resume=resume,
        work=optional_path(work),
        family_as_is=family_as_is,
        trust_remote_code=trust_remote_code,
    )
    return run(options, lambda text: say(f"moe4: {text}"), on_progress)


@operation
def load_report(release: PathLike) -> Report:
    """Return the report of a release, from its `moe4-report.json`. Raises CheckpointError.

    >>> moe4.load_report("release").recipe.method
    'rtn'
    """
    return read_report(Path(release))
