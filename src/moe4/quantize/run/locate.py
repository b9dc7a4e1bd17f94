"""Where a run finds its source, and that a run which goes on finds the same."""

from pathlib import Path

from moe4.arguments import argument
from moe4.checkpoint.journal import Begin, read_begin
from moe4.checkpoint.release_folder import REPORT_NAME, ReleaseFolder
from moe4.checkpoint.report_file import read_report
from moe4.errors import HubError, ResumeError
from moe4.fingerprint import Pin
from moe4.hub.locate import Located, locate_source
from moe4.quantize.planning.request import Request
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.transfer.ranks import Ranks


def locate_for_run(request: Request, progress: ProgressReporter, ranks: Ranks) -> Located:
    """Find the source, of the hub at the commit with which an unfinished or finished run was begun."""
    if request.stream and ranks.size > 1:
        raise HubError(
            f"{argument('stream')} is for one process, and this run has {ranks.size}; run it without "
            "torchrun, or leave "
            f"{argument('stream')} out"
        )
    work = ReleaseFolder.work_folder(request.out)
    begun: Pin | None = None
    if request.resume and (request.out / REPORT_NAME).is_file():
        begun = read_report(request.out).source.hub
    elif request.resume and (line := read_begin(work)) is not None:
        begun = line.hub
    return locate_source(
        request.source,
        request.revision,
        begun=begun,
        stream_to=work if request.stream else None,
        say=progress.say,
        on_progress=progress.downloading,
    )


def require_same_commit(begin: Begin, located: Located, out: Path) -> None:
    """Raise ResumeError where a run would go on with another commit, or stream what was not begun so."""
    before, pin = begin.hub, located.pin
    if pin is None or (before is None and located.stream is None):
        return
    if before is None:
        raise ResumeError(f"{out} was begun with a folder, not {pin}; resume with that folder")
    if (before.repository, before.commit) != (pin.repository, pin.commit):
        raise ResumeError(
            f"{out} was begun with {before.repository} at commit {before.commit}, not {pin}; add "
            f"{argument('revision', before.commit)}, or begin again in an empty folder"
        )
