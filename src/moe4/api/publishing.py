"""Measure everything in one run; write the report and the model card; upload to the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe4.api.operation import (
    PathLike,
    Positive,
    Source,
    Text,
    open_source,
    operation,
    optional_path,
    paths,
    say,
)
from moe4.progress import OnProgress, ignore

if TYPE_CHECKING:
    from moe4.prove.run import Proved
    from moe4.publish.card_file import Card
    from moe4.publish.push import Upload


@operation
def prove(
    source: Source,
    release: PathLike,
    *,
    revision: Text | None = None,
    quick: bool = False,
    tasks: Sequence[Text] = (),
    gsm8k_dir: PathLike | None = None,
    limit: Positive | None = None,
    data: PathLike | None = None,
    requests: Sequence[PathLike] = (),
    skip: Sequence[Text] = (),
    min_recovery: float = 0.99,
    min_agreement: float = 0.97,
    cache: PathLike | None = None,
    again: bool = False,
    repo: Text | None = None,
    base_model: Text | None = None,
    license_name: Text | None = None,
    tensor_parallel_size: Positive = 1,
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> "Proved":
    """Measure what quantization cost (verify, eval, compare, toolcheck, probe); write report and card.

    Results go to RELEASE/proof; an interrupted run continues. `left_out` of the result lists what was not
    measured and why, `failures` what failed the probe or is significantly below min_recovery, min_agreement.
    source, revision, family_as_is, trust_remote_code, on_progress: as in `quantize`. quick: ask less.
    tasks, gsm8k_dir, limit: as in `eval`. data: as in `compare`. requests: as in `toolcheck`. skip: parts to
    leave out. cache: of answers. again: repeat what is done. tensor_parallel_size: GPUs. repo, base_model,
    license_name: as in `card`. Raises EvaluationError, CheckpointError, HubError, ServeError, OutputError.

        >>> moe4.prove("k2-tiny", "release", quick=True, data="reference").failures
    """
    from moe4.prove.options import ProveOptions
    from moe4.prove.run import prove as run

    options = ProveOptions(
        source=open_source(source, revision, on_progress),
        release=Path(release),
        quick=quick,
        tasks=tuple(tasks),
        gsm8k_folder=optional_path(gsm8k_dir),
        limit=limit,
        data=optional_path(data),
        requests=paths(requests),
        skip=tuple(skip),
        min_recovery=min_recovery,
        min_agreement=min_agreement,
        cache_folder=optional_path(cache),
        repo=repo,
        base_model=base_model,
        license_name=license_name,
        tensor_parallel_size=tensor_parallel_size,
        family_as_is=family_as_is,
        trust_remote_code=trust_remote_code,
        again=again,
    )
    return run(options, lambda text: say(f"moe4: {text}"), on_progress)


@operation
def report(release: PathLike, *, proof: PathLike | None = None, output: PathLike | None = None) -> Path:
    """Write one page with all measured results of a release; return its path.

    proof: folder of the results, RELEASE/proof if None. output: the page, RELEASE/proof/report.html if None.
    Raises CheckpointError, EvaluationError or OutputError.

        >>> moe4.report("release", output="report.html").name
        'report.html'
    """
    from moe4.checkpoint.report_file import PROOF_FOLDER
    from moe4.files.durable import make_folder, write_output
    from moe4.publish.proof import read_proof
    from moe4.publish.report_page import render_report

    folder = Path(release)
    found = read_proof(folder, optional_path(proof))
    path = folder / PROOF_FOLDER / "report.html" if output is None else Path(output)
    make_folder(path.parent)
    write_output(path, render_report(found))
    return path


@operation
def card(
    release: PathLike,
    *,
    repo: Text | None = None,
    base_model: Text | None = None,
    license_name: Text | None = None,
    proof: PathLike | None = None,
    write: bool = True,
) -> "Card":
    """Write the model card, RELEASE/README.md, from measured results only.

    Text that you wrote or changed in the card stays; see `kept` of the result. repo: OWNER/NAME of the
    release on the hub, for the commands in the card. base_model: OWNER/NAME of the source.
    license_name: the hub's name for the licence, if moe4 does not find it. proof: folder of the results.
    write: False only returns the card. Raises CheckpointError, EvaluationError or OutputError.

        >>> moe4.card("release", write=False).path.name
        'README.md'
    """
    from moe4.files.durable import write_output
    from moe4.publish.card import CardNames
    from moe4.publish.card_file import read_card, update_card
    from moe4.publish.proof import read_proof

    folder = Path(release)
    found = read_proof(folder, optional_path(proof))
    names = CardNames(repo=repo, base_model=base_model, license_name=license_name)
    made = update_card(found, names, read_card(folder))
    if write:
        write_output(made.path, made.text)
    return made


@operation
def list_uploads(release: PathLike, repo: Text) -> "list[Upload]":
    """Return the files that `push` would upload, with their sizes in bytes. Nothing is sent.

    release: a folder. repo: OWNER/NAME. Raises OutputError if the hub would not accept the name, and
    CheckpointError if the release is unfinished.

        >>> sum(upload.num_bytes for upload in moe4.list_uploads("release", "owner/name")) > 10_000_000
        True
    """
    from moe4.publish.push import check_repo
    from moe4.publish.push import list_uploads as find

    check_repo(repo, f"the repository {repo}")
    return find(Path(release))


@operation
def push(release: PathLike, repo: Text, *, private: bool = False) -> str:
    """Upload a release and its card to the hub; return the repository's address.

    repo: OWNER/NAME. private: create a private repository. The token is huggingface_hub's (HF_TOKEN).
    Raises OutputError or CheckpointError.

        >>> moe4.push("release", "owner/name", private=True)
    """
    from moe4.publish.push import push as upload

    return upload(Path(release), repo, list_uploads(release, repo), private=private)
