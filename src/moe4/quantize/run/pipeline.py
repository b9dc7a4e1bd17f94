"""`moe4 quantize`: check everything, then commit layer after layer, on one process or many."""

import socket

from moe4.arguments import argument
from moe4.checkpoint.journal import read_begin
from moe4.checkpoint.release_folder import ReleaseFolder
from moe4.checkpoint.report_file import Report
from moe4.errors import DiskSpaceError, HubError, Moe4Error, OutputError
from moe4.files.durable import NO_ROOM
from moe4.hub.locate import Located
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.planning.request import Request, check_folders
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.run.commit_queue import commits_behind
from moe4.quantize.run.environment import find_environment
from moe4.quantize.run.kept_tokens import share_kept
from moe4.quantize.run.lead import follow, lead
from moe4.quantize.run.locate import locate_for_run
from moe4.quantize.run.prepare import check_agreement, prepare
from moe4.quantize.transfer.device_memory import require_device
from moe4.quantize.transfer.ranks import Ranks, keeping_threads
from moe4.quantize.transfer.reader import Prefetcher


def quantize(
    request: Request, progress: ProgressReporter | None = None, ranks: Ranks | None = None
) -> Report:
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
            named = HubError(
                f"{error}; the committed layers are kept: run again with {argument('resume', True)}"
            )
        if ranks.is_first:
            raise named from error
        raise type(named)(f"rank {ranks.rank} on {socket.gethostname()}: {named}") from error
    ranks.close()
    return report


def _quantize(request: Request, progress: ProgressReporter, ranks: Ranks) -> Report:
    check_folders(request.source, request.out)
    ranks.use(require_device(request.device, ranks.local_rank))
    folder = ReleaseFolder(request.out, resume=request.resume) if ranks.is_first else None
    located = locate_for_run(request, progress, ranks)
    try:
        return _quantize_located(request, progress, ranks, folder, located)
    finally:
        if located.stream is not None:
            located.stream.close()


def _quantize_located(
    request: Request,
    progress: ProgressReporter,
    ranks: Ranks,
    folder: ReleaseFolder | None,
    located: Located,
) -> Report:
    device = ranks.device
    kept = share_kept(None if folder is None else folder.work, ranks) if request.resume else None
    prepared = prepare(request, located, find_environment(device), kept)
    check_agreement(ranks, prepared.fingerprint)
    bench = Workbench(
        checkpoint=prepared.checkpoint,
        network=prepared.network,
        recipe=prepared.recipe,
        device=device,
        ranks=ranks,
        progress=progress,
        probe=prepared.running_probe(ReleaseFolder.work_folder(request.out), ranks, device),
        ahead=Prefetcher(prepared.checkpoint, device) if commits_behind(device) else None,
    )
    prepared.checkpoint.reads = bench.reads
    if device.type == "cuda" and prepared.corpus is not None:
        from moe4.quantize.gpu.solver import warm_up  # it needs Triton

        warm_up(bench)
    if folder is None:
        return follow(request, bench, prepared)
    try:
        return lead(folder, bench, prepared, progress, show_sample=request.show_sample)
    finally:
        prepared.checkpoint.provider.close()  # nothing is written once the lock is given back
        folder.close()


def _name_os_error(request: Request, error: OSError) -> OutputError:
    """Return one line for what the system refused."""
    if error.errno in NO_ROOM:
        reason = NO_ROOM[error.errno]
        return DiskSpaceError(
            f"{request.out}: {reason}; free some space and run again with {argument('resume', True)}"
        )
    where = error.filename or request.out
    return OutputError(
        f"{where}: {error.strerror or error}; the committed layers are kept: run again with "
        f"{argument('resume', True)}"
    )
