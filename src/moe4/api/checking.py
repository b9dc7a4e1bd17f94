"""Check a release: its files, and the answers of a server."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moe4.api.operation import (
    PathLike,
    Source,
    Text,
    open_source,
    operation,
    optional_path,
    say,
    stream_source,
)
from moe4.api.results import AnswerCheck, ProbeResult
from moe4.arguments import argument
from moe4.errors import ArgumentError, ProbeError
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
    stream: bool = False,
    device: str = "cpu",
    family_as_is: bool = False,
    on_progress: OnProgress = ignore,
) -> "Verification":
    """Check a release's files, tensors, config and codes, and compare them with its source if one is given.

    The result lists what is wrong in `problems`.
    release, source: a folder, or an id on the hub; give a source's revision as ID@REVISION.
    revision: branch, tag or commit of a release on the hub. stream: download the source's shards one after
    another into the folder for temporary files, and delete them after use. device: where to decode, cpu, cuda
    or cuda:N. family_as_is: accept a family that is not listed. on_progress: called with a `Progress` at each
    step.
    Raises CheckpointError if there is no release, HubError and DiskSpaceError.

        >>> moe4.verify("release", source="k2-tiny").ok
        True
    """
    from moe4.verify.checks import verify as check

    folder = open_source(release, revision, on_progress)
    checked = partial(
        check,
        folder,
        device=device,
        family_as_is=family_as_is,
        on_progress=Pace(on_progress, "checking").count,
        say=lambda text: say(text if text.startswith("warning:") else f"moe4: {text}"),
    )
    if not stream:
        return checked(None if source is None else open_source(source, None, on_progress))
    if source is None:
        raise ArgumentError("stream is for a source on the hub, and no source is given")
    with stream_source(source) as located:
        return checked(located.folder, stream=located.stream)


@operation
def probe(
    release: Source,
    *,
    source: Source | None = None,
    revision: Text | None = None,
    output: PathLike | None = None,
    force: bool = False,
    device: str = "cpu",
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> ProbeResult:
    """Compute a release's expected answers in float32 and write them to a file.

    `quantize` already writes them; use this for a release that has none.
    release, source: a folder, or an id on the hub; with a source, its answers are recorded too.
    revision: branch, tag or commit of a release on the hub. device: cpu, cuda or cuda:N.
    output: the file, RELEASE/moe4-probe.json if None; required for a release on the hub. force: overwrite it.
    family_as_is: try a family that is not listed. trust_remote_code: let the tokenizer run the checkpoint's
    code. on_progress: called at each step. Raises CheckpointError, HubError, OutputError or ProbeError.

        >>> moe4.probe("release", output="answers.json").num_sequences
        64
    """
    from moe4.probe.make import ProbeOptions, make_probe
    from moe4.probe.summary import summarize

    folder = open_source(release, revision, on_progress)
    if output is None and folder != Path(release):
        raise ProbeError(
            f"{release} is on the hub; name a file for the answers with {argument('output', 'FILE')}"
        )
    options = ProbeOptions(
        release=folder,
        source=None if source is None else open_source(source, None, on_progress),
        output=optional_path(output),
        force=force,
        device=device,
        family_as_is=family_as_is,
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
    """Compare a server's answers with a release's expected answers; `ok` is the verdict.

    release: a folder, an id on the hub, or a file of expected answers. url: with or without /v1.
    model: the first that the server lists if None. revision: branch, tag or commit of a release on the hub.
    timeout: seconds to wait for one answer. insecure: do not check the server's certificate.
    api_key: the value of VLLM_API_KEY if None. on_progress: called with a `Progress` at each step.
    Raises HubError, and ProbeError if the file or the server cannot be used.

        >>> moe4.check_answers("release", "http://127.0.0.1:8000").ok
        True
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
    """Return the server check as a stand-alone Python script, which does not need moe4. This raises nothing.

    >>> _ = Path("check.py").write_text(moe4.probe_script())
    """
    from moe4.probe.ask import script_text

    return script_text()
