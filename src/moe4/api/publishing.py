"""Show what was measured: everything in one run, the report's page, the model card, the hub."""

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
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> "Proved":
    """Measure what the quantization cost: verify, eval, compare, toolcheck, probe; write report and card.

    Results lie in RELEASE/proof; a run that was cut off goes on where it was. What cannot be measured here is
    in `left_out`, with what it would need. quick: a hundred questions, twenty texts, forty tool requests.
    skip: "evaluation", "comparison", "tools" or "probe". What is shown to be below `min_recovery` or
    `min_agreement`, or fails the probe, is in `failures`. again: measure what was measured already, too.
    repo, base_model, license_name: for the card. revision: of a source on the hub. Raises EvaluationError,
    CheckpointError, HubError, ServeError or OutputError.
    """
    from moe4.prove.options import ProveOptions
    from moe4.prove.run import prove as run

    options = ProveOptions(
        source=open_source(source, revision, on_progress),
        release=Path(release),
        quick=quick,
        tasks=tuple(tasks),
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
        trust_remote_code=trust_remote_code,
        again=again,
    )
    return run(options, lambda text: say(f"moe4: {text}"), on_progress)


@operation
def report(release: PathLike, *, proof: PathLike | None = None, output: PathLike | None = None) -> Path:
    """Write one page with all that was measured of a release; return its path.

    proof: the folder of the results; RELEASE/proof if None. output: RELEASE/proof/report.html if None.
    Raises CheckpointError, EvaluationError or OutputError.
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
    """Make the model card, from measured results only, and write it to RELEASE/README.md.

    What its user wrote or changed in a card stays when it is written again; see `kept`. repo: OWNER/NAME on
    the hub, for the commands in it. base_model: that of the source. license_name: the hub's name of the
    licence, where it is not found. Raises CheckpointError, EvaluationError or OutputError.

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
    """Return the files that `push` would upload to this repository, with their sizes.

    Raises OutputError for a name that the hub would not take, CheckpointError for an unfinished release.
    """
    from moe4.publish.push import check_repo
    from moe4.publish.push import list_uploads as find

    check_repo(repo)
    return find(Path(release))


@operation
def push(release: PathLike, repo: Text, *, private: bool = False) -> str:
    """Upload a release and its card to the hub; return the repository's address.

    private: create the repository private. The token is huggingface_hub's own (HF_TOKEN). Raises OutputError.
    """
    from moe4.publish.push import push as upload

    return upload(Path(release), repo, list_uploads(release, repo), private=private)
