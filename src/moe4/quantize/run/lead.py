"""What rank 0 does around the layers, from the journal's first line to the report, and what the others do."""

import torch

from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME
from moe4.checkpoint.journal import BEGIN_AGAIN, Begin, Journal, is_unchanged
from moe4.checkpoint.reads import require_same_source
from moe4.checkpoint.release_folder import REPORT_NAME, ReleaseFolder, State, dump_json
from moe4.checkpoint.report_file import Report, explain_missing, list_files, read_report
from moe4.errors import ResumeError
from moe4.files.regular import MAX_JSON_BYTES
from moe4.fingerprint import describe_changes
from moe4.hub.locate import Located
from moe4.probe.form import PROBE_NAME
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.memory_bound import disk_need
from moe4.quantize.planning.release_plan import ReleasePlan
from moe4.quantize.planning.request import Request
from moe4.quantize.planning.resolve import group_size_warnings
from moe4.quantize.reporting.layer_record import software_versions
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.reporting.run_report import build_report
from moe4.quantize.run.commit import Committer, follow_layers
from moe4.quantize.run.kept_tokens import keep_tokens
from moe4.quantize.run.locate import require_same_commit
from moe4.quantize.run.prepare import Prepared
from moe4.quantize.transfer.boundary import repair
from moe4.quantize.transfer.ranks import Parcel, threads_per_rank
from moe4.schema import Own, given


class Standing(Own):
    """What rank 0 tells the others before the layers: the report of a finished release, or where to begin."""

    report: Report | None = None
    num_done: int = 0
    threads: int = 1


def lead(
    folder: ReleaseFolder,
    bench: Workbench,
    prepared: Prepared,
    progress: ProgressReporter,
    *,
    show_sample: bool,
) -> Report:
    """Do rank 0's part."""
    ranks = bench.ranks
    if folder.state is State.FINISHED:
        report = _already_finished(folder, prepared)
        progress.say(f"{folder.folder} is finished; nothing was left to do")
        ranks.share(Parcel(facts=Standing(report=report).as_dict()))
        return report
    if bench.recipe.method == "copy":
        progress.say(
            f"the source's weights are INT4 in groups of {bench.recipe.group_size} already, as a release has "
            "them: their codes pass through unchanged (method copy)"
        )
    if prepared.corpus is not None:
        progress.say(prepared.corpus.recognized)
        if show_sample:
            progress.say(f"the first document as it is calibrated on:\n{prepared.corpus.sample}")
    _require_room(folder, prepared, bench, progress)
    journal, begin = _open_journal(folder, bench, prepared, progress)
    boundary = prepared.boundary(folder.work, bench.device)
    inputs = [item for item in (boundary, bench.probe) if item is not None]
    found = repair(journal, bench.network.num_layers, inputs)
    if found:
        progress.say(found)
    if bench.probe is None:
        progress.say(f"warning: {explain_missing(prepared.prompts.reason)}")
    threads = begin.num_threads
    ranks.share(Parcel(facts=Standing(num_done=len(journal.shards), threads=threads).as_dict()))
    torch.set_num_threads(threads)
    if threads > threads_per_rank(ranks):
        progress.say(
            f"note: the run began with {threads} threads a rank and keeps that number; "
            f"{threads_per_rank(ranks)} would fit"
        )
    committer = Committer(bench, folder, journal, prepared.plan, boundary, progress)
    if prepared.source.stream is not None:
        progress.follow(prepared.source.stream.meter)
    bench.checkpoint.provider.expect(prepared.steps[len(journal.shards) :], progress.say)
    _require_same_source(bench, prepared.plan, journal, committer.read_saved().reads)
    committer.commit_shards()
    bench.checkpoint.provider.close()
    report = _finish(folder, prepared, committer, begin)
    ranks.share(Parcel(facts=report.as_dict()))
    return report


def _require_room(
    folder: ReleaseFolder, prepared: Prepared, bench: Workbench, progress: ProgressReporter
) -> None:
    """Require the disk to have room, and say what the user should know before the work begins."""
    folder.require_space(
        disk_need(
            prepared.plan,
            prepared.network,
            prepared.checkpoint,
            prepared.num_tokens,
            folder.folder,
            probe_tokens=prepared.prompts.num_tokens,
        )
        + prepared.checkpoint.provider.room(prepared.steps)
    )
    if prepared.side_files.left_out:
        progress.say(f"not copied into the release: {', '.join(prepared.side_files.left_out)}")
    group_warnings = group_size_warnings(bench.recipe.group_size, bench.network)
    for warning in [*prepared.plan.warnings, *group_warnings]:
        progress.say(f"warning: {warning}")


def _open_journal(
    folder: ReleaseFolder,
    bench: Workbench,
    prepared: Prepared,
    progress: ProgressReporter,
) -> tuple[Journal, Begin]:
    """Open the output folder for this run, which began there or begins now; return what it is begun with."""
    journal = folder.open()
    shards = [shard.file_name for shard in prepared.plan.shards]
    side_files = [path.name for path in prepared.side_files.files]
    folder.require_own_files({*shards, *side_files, INDEX_NAME, CONFIG_NAME, REPORT_NAME, PROBE_NAME})
    threads = journal.threads or threads_per_rank(bench.ranks)
    begin = _begin(prepared, threads)
    if journal.begin is None:
        keep_tokens(folder.work, prepared.inputs, prepared.corpus, prepared.prompts)
        journal.start(begin)
    else:
        _go_on(journal, journal.begin, begin, folder, prepared.source, progress)
    return journal, begin


def _begin(prepared: Prepared, threads: int) -> Begin:
    """Return what this run begins with, which is what one that goes on must have begun with."""
    checkpoint, pin, found = prepared.checkpoint, prepared.source.pin, prepared.fingerprint
    assert found.environment is not None
    return Begin(
        **{**dict(found), "environment": found.environment.with_threads(threads)},
        recipe_values=prepared.recipe.to_dict(),
        versions={name: text for name, text in software_versions().items() if name != "moe4"},
        source_files={name: checkpoint.provider.identify(shard) for name, shard in checkpoint.shards.items()},
        **given(hub=pin),
    )


def _go_on(
    journal: Journal,
    before: Begin,
    begin: Begin,
    folder: ReleaseFolder,
    located: Located,
    progress: ProgressReporter,
) -> None:
    """Hold this run to the one that was begun. Raises ResumeError."""
    journal.match(begin)
    require_same_commit(before, located, folder.folder)
    journal.check_shards(folder.folder)
    for shard in journal.shards:
        for name, sha256 in shard.kept.items():
            if name.endswith(".json") and not is_unchanged(folder.work / name, sha256, MAX_JSON_BYTES):
                raise ResumeError(f"{folder.work / name} is missing or damaged; {BEGIN_AGAIN}")
    others = [
        f"{key} {before.versions.get(key)}, now {now}"
        for key, now in begin.versions.items()
        if before.versions.get(key) != now
    ]
    if others:
        progress.say(f"note: begun with {'; '.join(others)}; other versions may round differently")


def _require_same_source(
    bench: Workbench, plan: ReleasePlan, journal: Journal, known: dict[str, str]
) -> None:
    """Hold the source to what was read of it before. Raises ResumeError where it has changed."""
    assert journal.begin is not None
    bench.reads.expect(known)
    unread = [name for shard in plan.shards for name in shard.source_names if name not in known]
    require_same_source(bench.checkpoint, known, journal.begin.source_files, unread, bench.progress.say)


def _finish(folder: ReleaseFolder, prepared: Prepared, committer: Committer, begin: Begin) -> Report:
    """Write what the release has beside its shards; return the report."""
    folder.copy_side_files(prepared.side_files.files, begin.side_files)
    saved = committer.read_saved()
    assert len(saved.parts) == len(prepared.plan.shards)
    probe = committer.write_probe(prepared.prompts, saved.layers)
    names = [path.name for path in prepared.side_files.files]
    if probe.is_there:
        names.append(PROBE_NAME)
    last = committer.last_files()
    report = build_report(
        fingerprint=begin.fingerprint(),
        recipe=committer.bench.recipe,
        checkpoint=prepared.checkpoint,
        plan=prepared.plan,
        corpus=prepared.corpus,
        shards=committer.journal.shards,
        left_out=prepared.side_files.left_out,
        saved=saved,
        files=list_files(folder.folder, names, last),
        probe=probe,
        pin=prepared.source.pin,
    )
    folder.finish({REPORT_NAME: dump_json(report.as_dict()), **last})
    return report


def follow(request: Request, bench: Workbench, prepared: Prepared) -> Report:
    """Do the part of a rank other than 0."""
    ranks = bench.ranks
    standing = Standing(**ranks.share(None).facts)
    if standing.report is not None:
        return standing.report
    torch.set_num_threads(standing.threads)
    work = ReleaseFolder.work_folder(request.out)
    follow_layers(bench, prepared.plan, standing.num_done, prepared.boundary(work, bench.device), work)
    return Report(**ranks.share(None).facts)


def _already_finished(folder: ReleaseFolder, prepared: Prepared) -> Report:
    """Return the report of a release that is finished and would become the same. Raises ResumeError."""
    report = read_report(folder.folder)
    before = report.fingerprint
    if before is None:
        raise ResumeError(
            f"{folder.folder} holds a finished release of an older moe4; choose an empty folder"
        )
    fingerprint = prepared.fingerprint
    assert fingerprint.environment is not None
    threads = before.environment.threads if before.environment else None  # those it was begun with
    now = fingerprint.model_copy(update={"environment": fingerprint.environment.with_threads(threads)})
    if all(getattr(before, key) == getattr(now, key) for key in ("documents", "recipe", "side_files")):
        # A template may write the time: the tokens of the same documents are then others by now.
        now = now.model_copy(update={"calibration": before.calibration, "probe": before.probe})
    changed = describe_changes(before, now, report.recipe.as_dict(), prepared.recipe.to_dict())
    if changed:
        raise ResumeError(f"{folder.folder} holds a finished release of {changed}; choose an empty folder")
    folder.remove_work_folder()
    return report
