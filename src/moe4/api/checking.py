"""Check a release: its files, and the answers of a server that serves it."""

from pathlib import Path
from typing import TYPE_CHECKING

from moe4.api.operation import PathLike, Source, Text, open_source, operation, optional_path, say
from moe4.api.results import AnswerCheck, ProbeResult
from moe4.errors import ProbeError
from moe4.progress import OnProgress, Pace, ignore
from moe4.schema import parse

if TYPE_CHECKING:
    from moe4.verify.result import Verification


@operation
def verify(
    release: Source,
    source: Source | None = None,
    *,
    revision: Text | None = None,
    device: str = "cpu",
    family_as_is: bool = False,
    on_progress: OnProgress = ignore,
) -> "Verification":
    """Check a release: every file, every tensor, its config, its codes; against its source if one is given.

    revision: the branch, tag or commit of a release on the hub; ID@REVISION says it of a source.
    family_as_is: the release is of a family that is not listed. What is wrong is in `problems`; it raises
    CheckpointError only where there is no release at all, or HubError.

        >>> moe4.verify("release", source="k2-tiny").ok
        True
    """
    from moe4.verify.checks import verify as check

    folder = open_source(release, revision, on_progress)
    against = None if source is None else open_source(source, None, on_progress)
    return check(
        folder,
        against,
        device=device,
        family_as_is=family_as_is,
        on_progress=Pace(on_progress, "checking").count,
    )


@operation
def probe(
    release: Source,
    *,
    source: Source | None = None,
    revision: Text | None = None,
    output: PathLike | None = None,
    force: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> ProbeResult:
    """Compute a release's expected answers in float32 and write them into `output`, or moe4-probe.json.

    `quantize` has done so already; this is for a release without them. source: record its answers beside the
    release's. revision: of a release on the hub, whose answers need an `output`. force: overwrite the file.
    Raises CheckpointError, HubError, OutputError or ProbeError.

        >>> moe4.probe("release", output="answers.json").num_sequences
        64
    """
    from moe4.probe.make import ProbeOptions, make_probe
    from moe4.probe.summary import summarize

    folder = open_source(release, revision, on_progress)
    if output is None and folder != Path(release):
        raise ProbeError(f"{release} is on the hub; name a file for the answers with --output FILE")
    options = ProbeOptions(
        release=folder,
        source=None if source is None else open_source(source, None, on_progress),
        output=optional_path(output),
        force=force,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    found = summarize(make_probe(options, say, on_progress))
    return ProbeResult(**found.as_dict(), output=str(options.path))


@operation
def check_answers(
    release: Source,
    url: Text,
    *,
    model: Text | None = None,
    revision: Text | None = None,
    timeout: float = 120.0,
    insecure: bool = False,
    api_key: str | None = None,
    on_progress: OnProgress = ignore,
) -> AnswerCheck:
    """Ask a server for a release's expected answers: does it compute what the release holds?

    release: its folder, its id on the hub, at `revision`, or a file of expected answers. model: the server's
    first if None. timeout: seconds one answer may take. insecure: do not check the server's certificate.
    api_key: VLLM_API_KEY's if None.
    Raises ProbeError where the file or the server cannot be used.
    """
    from moe4.probe.ask import ask_server

    found = ask_server(
        open_source(release, revision, on_progress),
        url,
        model=model,
        timeout=timeout,
        verify=not insecure,
        key=api_key,
        on_progress=Pace(on_progress, "asking the server").count,
    )
    return parse(AnswerCheck, found, "the verdict", ProbeError)


def probe_script() -> str:
    """Return the check of a server as one file of Python that needs no moe4."""
    from moe4.probe.ask import script_text

    return script_text()
