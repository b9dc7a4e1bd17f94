"""Check a release: its files, and the answers of a server that serves it."""

from moe4.api.operation import PathLike, Source, Text, open_source, operation, optional_path, say
from moe4.api.results import AnswerCheck, ProbeResult, Verification
from moe4.progress import OnProgress, Pace, ignore


@operation
def verify(
    release: Source,
    source: Source | None = None,
    *,
    device: str = "cpu",
    on_progress: OnProgress = ignore,
) -> Verification:
    """Check a release: every file, every tensor, its config, its codes; against its source if one is given.

    What is wrong is in `problems`; it raises CheckpointError only where there is no release at all.

        >>> moe4.verify("release", source="k2-tiny").ok
        True
    """
    from moe4.verify.checks import verify as check

    against = None if source is None else open_source(source)
    pace = Pace(on_progress, "checking")
    return Verification.of(check(open_source(release), against, device=device, on_progress=pace.count))


@operation
def probe(
    release: Source,
    *,
    source: Source | None = None,
    output: PathLike | None = None,
    force: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> ProbeResult:
    """Compute a release's expected answers in float32 and write them into `output`, or moe4-probe.json.

    `quantize` has done so already; this is for a release without them. source: record its answers beside the
    release's. force: overwrite the file. Raises CheckpointError, OutputError or ProbeError.

        >>> moe4.probe("release", output="answers.json").num_sequences
        64
    """
    from moe4.probe.make import ProbeOptions, make_probe, summarize

    options = ProbeOptions(
        release=open_source(release),
        source=None if source is None else open_source(source),
        output=optional_path(output),
        force=force,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    answers = make_probe(options, say, on_progress)
    return ProbeResult.of({**summarize(answers), "output": str(options.path)})


@operation
def check_answers(
    release: Source,
    url: Text,
    *,
    model: Text | None = None,
    timeout: float = 120.0,
    insecure: bool = False,
    api_key: str | None = None,
    on_progress: OnProgress = ignore,
) -> AnswerCheck:
    """Ask a server for a release's expected answers: does it compute what the release holds?

    release: its folder, or a file of expected answers. model: the server's first if None. timeout: seconds
    one answer may take. insecure: do not check the server's certificate. api_key: VLLM_API_KEY's if None.
    Raises ProbeError where the file or the server cannot be used.
    """
    from moe4.probe.ask import ask_server

    return AnswerCheck.of(
        ask_server(
            open_source(release),
            url,
            model=model,
            timeout=timeout,
            verify=not insecure,
            key=api_key,
            on_progress=Pace(on_progress, "asking the server").count,
        )
    )


def probe_script() -> str:
    """Return the check of a server as one file of Python that needs no moe4."""
    from moe4.probe.ask import script_text

    return script_text()
