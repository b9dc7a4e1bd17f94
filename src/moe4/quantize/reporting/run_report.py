"""What a run came to: `moe4-report.json`."""

from collections.abc import Sequence

from moe4.calibration.corpus import Corpus
from moe4.checkpoint.journal import CommittedShard
from moe4.checkpoint.report_file import (
    NOT_COVERED,
    FileEntry,
    Listing,
    Report,
    ReportedCalibration,
    ReportedProbe,
    ReportedRelease,
    ReportedSource,
    ReportRecipe,
    Timing,
)
from moe4.checkpoint.source import Checkpoint
from moe4.fingerprint import Fingerprint, Pin
from moe4.model.accounting import count_patterns
from moe4.quantize.planning.release_plan import ReleasePlan
from moe4.quantize.reporting.layer_record import software_versions, summarize
from moe4.quantize.reporting.saved import SavedRun
from moe4.recipe import Recipe
from moe4.schema import given


def build_report(
    *,
    fingerprint: Fingerprint,
    recipe: Recipe,
    checkpoint: Checkpoint,
    plan: ReleasePlan,
    corpus: Corpus | None,
    shards: list[CommittedShard],
    left_out: Sequence[str],
    saved: SavedRun,
    files: Listing,
    probe: ReportedProbe,
    pin: Pin | None = None,
) -> Report:
    """Return the report; everything but `timing` is the same for the same recipe, source and versions.

    `left_out` names the files of the source that are not copied; `saved` is what the shards left;
    `files` lists all but the shards; `probe` is what is to be said of the expected answers;
    `pin` the commit of a source on the hub.
    """
    records, timings = [layer.record for layer in saved.layers], [layer.timing for layer in saved.layers]
    seconds = [timing.seconds for timing in timings]
    return Report(
        versions=software_versions(),
        recipe=ReportRecipe(**recipe.to_dict()),
        fingerprint=fingerprint,
        source=ReportedSource(
            **given(hub=pin, quantized_again=count_patterns(plan.coarse) or None),
            model_type=checkpoint.config.model_type,
            num_bytes=sum(shard.num_bytes for shard in checkpoint.shards.values()),
            files_left_out=list(left_out),
            tensors_left_out=count_patterns(plan.left_out),
            tensors=saved.reads,
        ),
        calibration=None if corpus is None else _calibration(corpus),
        release=ReportedRelease(
            num_bytes=sum(shard.num_bytes for shard in shards),
            shards={
                shard.name: FileEntry(num_bytes=shard.num_bytes, sha256=shard.sha256) for shard in shards
            },
            files=files,
            not_covered=list(NOT_COVERED),
        ),
        probe=probe,
        summary=summarize(records),
        layers=records,
        timing=Timing(
            seconds=round(sum(seconds), 3),
            layer_seconds=seconds,
            num_ranks=[timing.num_ranks for timing in timings],
            peak_memory_bytes=max(timing.peak_memory_bytes for timing in timings),
            traffic_bytes=saved.traffic,
        ),
    )


def _calibration(corpus: Corpus) -> ReportedCalibration:
    return ReportedCalibration(
        data=corpus.description, num_sequences=len(corpus.sequences), num_tokens=corpus.num_tokens
    )
