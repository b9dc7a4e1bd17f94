"""`moe4 quantize`: check everything, then commit layer after layer, on one process or many."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe4.calibration.corpus import Corpus, documents_digest, draw_documents, tokenize_drawn
from moe4.calibration.tokenizer import load_tokenizer
from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME
from moe4.checkpoint.journal import Journal, describe_changes, is_unchanged, read_begin
from moe4.checkpoint.reads import require_same_source
from moe4.checkpoint.release_folder import REPORT_NAME, ReleaseFolder, State, dump_json
from moe4.checkpoint.report_file import explain_missing, list_files, read_report
from moe4.checkpoint.side_files import SideFiles, find_side_files
from moe4.checkpoint.source import Checkpoint
from moe4.errors import DiskSpaceError, HubError, Moe4Error, OutputError, RankError, ResumeError
from moe4.files.durable import NO_ROOM
from moe4.hub.locate import Located, locate_source
from moe4.hub.repository import Pin
from moe4.model.architecture import Network
from moe4.model.fused import take_experts_apart
from moe4.probe.form import PROBE_NAME
from moe4.quantize.layer.running_probe import ProbePrompts, RunningProbe, find_prompts
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.memory_bound import disk_need, memory_need, require_memory
from moe4.quantize.planning.release_plan import (
    ReleasePlan,
    group_size_warnings,
    make_plan,
    resolve_for_source,
)
from moe4.quantize.planning.request import Request, check_folders
from moe4.quantize.planning.source_steps import source_steps
from moe4.quantize.reporting.layer_record import software_versions
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.reporting.run_report import build_report
from moe4.quantize.run.commit import Committer, follow
from moe4.quantize.run.commit_queue import commits_behind
from moe4.quantize.run.environment import RunEnvironment, find_environment
from moe4.quantize.run.kept_tokens import find_kept, inputs_digest, keep_tokens, parse_kept
from moe4.quantize.transfer.boundary import Boundary, repair
from moe4.quantize.transfer.device_memory import require_device
from moe4.quantize.transfer.ranks import Parcel, Ranks, keeping_threads, threads_per_rank
from moe4.quantize.transfer.reader import Prefetcher
from moe4.recipe import Recipe

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """What is known before anything is written; every rank finds it for itself."""

    source: Located
    checkpoint: Checkpoint
    network: Network
    recipe: Recipe
    plan: ReleasePlan
    corpus: Corpus | None
    fingerprint: dict[str, Any]
    prompts: ProbePrompts
    side_files: SideFiles
    inputs: str
    """SHA-256 of what the tokens come from."""

    @property
    def num_tokens(self) -> int:
        """Tokens of calibration; 0 without."""
        return self.corpus.num_tokens if self.corpus else 0

    @property
    def steps(self) -> list[list[Path]]:
        """What of the source each shard of the release is made of."""
        has_probe = bool(self.prompts.chosen)
        embeds = has_probe or self.corpus is not None
        return source_steps(self.checkpoint, self.network, self.plan, embeds=embeds, has_probe=has_probe)


def quantize(
    request: Request, progress: ProgressReporter | None = None, ranks: Ranks | None = None
) -> dict[str, Any]:
    """Quantize a checkpoint; return the report. Raises Moe4Error's children; nothing is left half written.

    With several `ranks` each of them calls this; rank 0 alone tells its progress. The process is left as it
    was found; what a command may do to its own is in `ranks.own_process`.
    """
    ranks = ranks or Ranks()
    if progress is None or not ranks.is_first:
        progress = ProgressReporter()
    try:
        ranks.connect(gpus=request.device.startswith("cuda"))
        with keeping_threads():
            report = _quantize(request, progress, ranks)
    except (Moe4Error, OSError) as error:
        named = error if isinstance(error, Moe4Error) else _name_os_error(request, error)
        if isinstance(error, HubError) and read_begin(ReleaseFolder.work_folder(request.out)) is not None:
            named = HubError(f"{error}; the committed layers are kept: run again with --resume")
        if ranks.is_first:
            raise named from error
        raise type(named)(f"rank {ranks.rank} on {socket.gethostname()}: {named}") from error
    ranks.close()
    return report


def _quantize(request: Request, progress: ProgressReporter, ranks: Ranks) -> dict[str, Any]:
    check_folders(request.source, request.out)
    ranks.device = require_device(request.device, ranks.local_rank)
    folder = ReleaseFolder(request.out, resume=request.resume) if ranks.is_first else None
    source = _locate(request, progress, ranks)
    try:
        return _quantize_located(request, progress, ranks, folder, source)
    finally:
        if source.stream is not None:
            source.stream.close()


def _quantize_located(
    request: Request,
    progress: ProgressReporter,
    ranks: Ranks,
    folder: ReleaseFolder | None,
    source: Located,
) -> dict[str, Any]:
    device = ranks.device
    kept = find_kept(folder.work) if folder is not None and request.resume else None
    if request.resume:
        kept = ranks.share(Parcel(facts={"kept": kept})).facts["kept"]
    prepared = _prepare(request, source, find_environment(device), kept)
    _check_agreement(ranks, prepared.fingerprint)
    bench = Workbench(
        checkpoint=prepared.checkpoint,
        network=prepared.network,
        recipe=prepared.recipe,
        device=device,
        ranks=ranks,
        progress=progress,
        probe=_running_probe(request, prepared, ranks, device),
        ahead=Prefetcher(prepared.checkpoint, device) if commits_behind(device) else None,
    )
    prepared.checkpoint.reads = bench.reads
    if device.type == "cuda" and prepared.corpus is not None:
        from moe4.quantize.gpu.solver import warm_up  # it needs Triton

        warm_up(bench)
    if folder is None:
        return _follow(request, bench, prepared)
    try:
        return _lead(folder, bench, prepared, progress, show_sample=request.show_sample)
    finally:
        prepared.checkpoint.provider.close()  # nothing is written once the lock is given back
        folder.close()


def _lead(
    folder: ReleaseFolder,
    bench: Workbench,
    prepared: _Prepared,
    progress: ProgressReporter,
    *,
    show_sample: bool,
) -> dict[str, Any]:
    """Do rank 0's part."""
    ranks, fingerprint = bench.ranks, dict(prepared.fingerprint)
    if folder.state is State.FINISHED:
        report = _already_finished(folder, fingerprint, bench.recipe)
        return ranks.share(Parcel(facts={"report": report})).facts["report"]  # type: ignore[no-any-return]
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
    journal = _open_journal(folder, bench, prepared, progress, fingerprint)
    boundary = _boundary(folder.work, prepared, bench.device)
    inputs = [item for item in (boundary, bench.probe) if item is not None]
    found = repair(journal, bench.network.num_layers, inputs)
    if found:
        progress.say(found)
    if bench.probe is None:
        progress.say(f"warning: {explain_missing(prepared.prompts.reason)}")
    threads = int(fingerprint["environment"]["threads"])
    ranks.share(Parcel(facts={"num_done": len(journal.shards), "threads": threads}))
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
    _require_same_source(bench, prepared.plan, journal, committer.saved_reads())
    committer.commit_shards()
    bench.checkpoint.provider.close()
    report = _finish(folder, prepared, committer, fingerprint)
    return ranks.share(Parcel(facts=report)).facts


def _require_room(
    folder: ReleaseFolder, prepared: _Prepared, bench: Workbench, progress: ProgressReporter
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
    prepared: _Prepared,
    progress: ProgressReporter,
    fingerprint: dict[str, Any],
) -> Journal:
    """Open the output folder for this run, which began there or begins now; complete its fingerprint."""
    journal = folder.open()
    shards = [shard.file_name for shard in prepared.plan.shards]
    side_files = [path.name for path in prepared.side_files.files]
    folder.require_own_files({*shards, *side_files, INDEX_NAME, CONFIG_NAME, REPORT_NAME, PROBE_NAME})
    threads = journal.threads or threads_per_rank(bench.ranks)
    fingerprint["environment"] = {**fingerprint["environment"], "threads": threads}
    if journal.begin is None:
        keep_tokens(folder.work, prepared.inputs, prepared.corpus, prepared.prompts)
    _begin_or_match(journal, folder, fingerprint, bench.recipe, prepared, progress)
    return journal


def _finish(
    folder: ReleaseFolder, prepared: _Prepared, committer: Committer, fingerprint: dict[str, Any]
) -> dict[str, Any]:
    """Write what the release has beside its shards; return the report."""
    folder.copy_side_files(prepared.side_files.files, fingerprint["side_files"])
    probe = committer.write_probe(prepared.prompts)
    names = [path.name for path in prepared.side_files.files]
    if "missing" not in probe:
        names.append(PROBE_NAME)
    last = committer.last_files()
    report = build_report(
        fingerprint=fingerprint,
        recipe=committer.bench.recipe,
        checkpoint=prepared.checkpoint,
        plan=prepared.plan,
        corpus=prepared.corpus,
        shards=committer.journal.shards,
        left_out=prepared.side_files.left_out,
        saved=committer.saved_records(),
        traffic=committer.saved_traffic(),
        reads=committer.saved_reads(),
        files=list_files(folder.folder, names, last),
        probe=probe,
        pin=prepared.source.pin,
    )
    folder.finish({REPORT_NAME: dump_json(report), **last})
    return report


def _follow(request: Request, bench: Workbench, prepared: _Prepared) -> dict[str, Any]:
    """Do the part of a rank other than 0."""
    ranks = bench.ranks
    state = ranks.share(None).facts
    if "report" in state:
        return dict(state["report"])
    torch.set_num_threads(int(state["threads"]))
    work = ReleaseFolder.work_folder(request.out)
    follow(bench, prepared.plan, int(state["num_done"]), _boundary(work, prepared, bench.device), work)
    return ranks.share(None).facts


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """The token ids of a run, and what they come from."""

    corpus: Corpus | None
    prompts: ProbePrompts
    documents: str | None
    inputs: str


def _locate(request: Request, progress: ProgressReporter, ranks: Ranks) -> Located:
    """Find the source, of the hub at the commit with which an unfinished or finished run was begun."""
    if request.stream and ranks.size > 1:
        raise HubError(
            f"--stream is for one process, and this run has {ranks.size}; run it without torchrun, or leave "
            "--stream out"
        )
    work = ReleaseFolder.work_folder(request.out)
    begun: dict[str, str] | None = None
    if request.resume and (request.out / REPORT_NAME).is_file():
        begun = read_report(request.out)["source"].get("hub")
    elif request.resume:
        begun = (read_begin(work) or {}).get("hub")
    return locate_source(
        request.source,
        request.revision,
        begun=None
        if begun is None
        else Pin(**{key: begun[key] for key in ("repository", "revision", "commit")}),
        stream_to=work if request.stream else None,
        say=progress.say,
        on_progress=progress.downloading,
    )


def _require_same_commit(begin: dict[str, Any], source: Located, out: Path) -> None:
    """Raise ResumeError where a run would go on with another commit, or stream what was not begun so."""
    before, pin = begin.get("hub"), source.pin
    if pin is None or (before is None and source.stream is None):
        return
    if before is None:
        raise ResumeError(f"{out} was begun with a folder, not {pin}; resume with that folder")
    if (before["repository"], before["commit"]) != (pin.repository, pin.commit):
        raise ResumeError(
            f"{out} was begun with {before['repository']} at commit {before['commit']}, not {pin}; add "
            f"--revision {before['commit']}, or begin again in an empty folder"
        )


def _prepare(
    request: Request, source: Located, environment: RunEnvironment, kept: dict[str, Any] | None
) -> _Prepared:
    """Look at everything; `kept`: what an unfinished run keeps of its tokens."""
    checkpoint = Checkpoint(source.folder, source.stream)
    side_files = find_side_files(checkpoint.folder, checkpoint.shards, source.elsewhere)
    network = Network(checkpoint.config, DTYPES[request.recipe.calibration.compute_dtype])
    take_experts_apart(checkpoint, network)
    recipe = resolve_for_source(request.recipe, checkpoint, network)
    plan = make_plan(checkpoint, network, recipe, allow_extra=request.allow_extra)
    texts = _prepare_texts(request, source.folder, network, recipe, side_files, kept)
    fingerprint = {
        "moe4": software_versions()["moe4"],
        "source": checkpoint.digest(),
        "recipe": recipe.digest(),
        "documents": texts.documents,
        "calibration": texts.corpus.digest() if texts.corpus else None,
        "probe": texts.prompts.digest(),
        "side_files": side_files.digests(),
        "environment": environment.to_dict(),
    }
    prepared = _Prepared(
        source=source,
        checkpoint=checkpoint,
        network=network,
        recipe=recipe,
        plan=plan,
        corpus=texts.corpus,
        fingerprint=fingerprint,
        prompts=texts.prompts,
        side_files=side_files,
        inputs=texts.inputs,
    )
    need = memory_need(
        plan,
        network,
        checkpoint,
        recipe,
        prepared.num_tokens,
        probe_tokens=texts.prompts.num_tokens,
        device=torch.device(request.device),
    )
    require_memory(need, recipe.memory_budget_bytes)
    return prepared


def _prepare_texts(
    request: Request,
    folder: Path,
    network: Network,
    recipe: Recipe,
    side_files: SideFiles,
    kept: dict[str, Any] | None,
) -> _Texts:
    """Return the token ids of the run: those that it keeps, if they come from the same, or new ones."""
    drawn, documents = None, None
    if recipe.method == "gptq":
        drawn = draw_documents(folder, recipe.calibration, request.calibration, request.split)
        documents = documents_digest(drawn)
    inputs = inputs_digest(documents, recipe.digest(), side_files.digests())
    old = parse_kept(kept, inputs)
    if old is not None:
        return _Texts(corpus=old.to_corpus(), prompts=old.to_prompts(), documents=documents, inputs=inputs)
    trusted, corpus = request.trust_remote_code, None
    if drawn is not None:
        tokenizer = load_tokenizer(folder, network.config, trust_remote_code=trusted)
        corpus = tokenize_drawn(tokenizer, int(network.config.vocab_size), recipe.calibration, drawn)
    prompts = find_prompts(folder, network, trust_remote_code=trusted)
    return _Texts(corpus=corpus, prompts=prompts, documents=documents, inputs=inputs)


def _check_agreement(ranks: Ranks, fingerprint: dict[str, Any]) -> None:
    """Raise RankError on rank 0 unless all ranks see the same version, source, recipe and calibration."""
    for rank, parcel in ranks.spread(ranks.size, lambda _: Parcel(facts=fingerprint)):
        changed = describe_changes(fingerprint, parcel.facts)
        if changed:
            raise RankError(f"rank {rank} sees {changed} than rank 0; give every node the same files")


def _begin_or_match(
    journal: Journal,
    folder: ReleaseFolder,
    fingerprint: dict[str, Any],
    recipe: Recipe,
    prepared: _Prepared,
    progress: ProgressReporter,
) -> None:
    """Begin a journal, or hold this run to the one that is there."""
    checkpoint, pin = prepared.checkpoint, prepared.source.pin
    versions = {name: text for name, text in software_versions().items() if name != "moe4"}
    begin = {
        **fingerprint,
        "recipe_values": recipe.to_dict(),
        "versions": versions,
        "source_files": {
            name: checkpoint.provider.identify(shard) for name, shard in checkpoint.shards.items()
        },
    }
    if pin is not None:
        begin["hub"] = pin.to_dict()
    if journal.begin is None:
        journal.start(begin)
        return
    journal.match(begin)
    _require_same_commit(journal.begin, prepared.source, folder.folder)
    journal.check_shards(folder.folder)
    for shard in journal.shards:
        for name, sha256 in shard.kept.items():
            if name.endswith(".json") and not is_unchanged(folder.work / name, sha256):
                raise ResumeError(
                    f"{folder.work / name} is missing or damaged; begin again in an empty folder"
                )
    before = journal.begin["versions"]
    others = [
        f"{key} {before.get(key)}, now {now}" for key, now in versions.items() if before.get(key) != now
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
    before = journal.begin["source_files"]
    require_same_source(bench.checkpoint, known, before, unread, bench.progress.say)


def _boundary(work: Path, prepared: _Prepared, device: torch.device) -> Boundary | None:
    if prepared.corpus is None:
        return None
    return Boundary(work, prepared.checkpoint, prepared.network, prepared.corpus, device)


def _running_probe(
    request: Request, prepared: _Prepared, ranks: Ranks, device: torch.device
) -> RunningProbe | None:
    if not prepared.prompts.chosen:
        return None
    work = ReleaseFolder.work_folder(request.out)
    return RunningProbe(prepared.checkpoint, ranks, device, work, prepared.prompts.chosen)


def _already_finished(folder: ReleaseFolder, fingerprint: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    report = read_report(folder.folder)
    before = {**report.get("fingerprint", {}), "recipe_values": report.get("recipe", {})}
    environment = dict(fingerprint["environment"])
    environment["threads"] = (before.get("environment") or {}).get("threads")  # those it was begun with
    fingerprint = {**fingerprint, "environment": environment}
    if all(before.get(key) == fingerprint[key] for key in ("documents", "recipe", "side_files")):
        # A template may write the time: the tokens of the same documents are then others by now.
        fingerprint |= {key: before.get(key) for key in ("calibration", "probe")}
    changed = describe_changes(before, {**fingerprint, "recipe_values": recipe.to_dict()})
    if changed:
        raise ResumeError(f"{folder.folder} holds a finished release of {changed}; choose an empty folder")
    folder.remove_work_folder()
    return report


def _name_os_error(request: Request, error: OSError) -> OutputError:
    """Return one line for what the system refused."""
    if error.errno in NO_ROOM:
        reason = NO_ROOM[error.errno]
        return DiskSpaceError(f"{request.out}: {reason}; free some space and run again with --resume")
    where = error.filename or request.out
    return OutputError(
        f"{where}: {error.strerror or error}; the committed layers are kept: run again with --resume"
    )
