"""`moe4 prove`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.options import TrustRemoteCode
from moe4.cli.output import echo, echo_json
from moe4.cli.source import Revision, find


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder of the source checkpoint, or its id on the hub."),
    ],
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of its release.")],
    revision: Revision = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A hundred questions, twenty texts, forty tool requests.")
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(help="As in `moe4 eval`; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions of a task.")] = None,
    data: Annotated[Path | None, typer.Option(help="Held-out text, as in `moe4 compare`.")] = None,
    requests: Annotated[
        list[Path] | None, typer.Option(help="Tool requests, as in `moe4 toolcheck`.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="evaluation, comparison, tools or probe; may be repeated.")
    ] = None,
    min_recovery: Annotated[
        float, typer.Option(help="Exit 1 if recovery is shown to be below this share.")
    ] = 0.99,
    min_agreement: Annotated[
        float, typer.Option(help="Exit 1 if tool decisions are shown to agree on less than this.")
    ] = 0.97,
    cache: Annotated[Path | None, typer.Option(help="Folder of answers, as in `moe4 eval`.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what was measured already.")] = False,
    repo: Annotated[str | None, typer.Option(help="OWNER/NAME on the hub, for the card.")] = None,
    base_model: Annotated[str | None, typer.Option(help="OWNER/NAME of the source, for the card.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="The hub's name of the licence, for the card.")
    ] = None,
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "-tp", min=1, help="GPUs to split the models over.")
    ] = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure what the quantization cost: verify, eval, compare, toolcheck, probe; write report and card.

    Results lie in RELEASE/proof. A run that was cut off goes on where it was. What cannot be measured here is
    left out, and said.
    """
    from moe4.prove import ProveOptions, describe, failures
    from moe4.prove import prove as run

    options = ProveOptions(
        source=find(source, revision),
        release=release,
        quick=quick,
        tasks=tuple(task or ()),
        limit=limit,
        data=data,
        requests=tuple(requests or ()),
        skip=tuple(skip or ()),
        min_recovery=min_recovery,
        min_agreement=min_agreement,
        cache_folder=cache,
        repo=repo,
        base_model=base_model,
        license_name=license_name,
        tensor_parallel_size=tensor_parallel_size,
        trust_remote_code=trust_remote_code,
        again=again,
    )
    result = run(options, say=lambda text: echo(f"moe4: {text}", err=True))
    missed = failures(result, options)
    document = {**result.as_dict(), "failures": missed}
    if as_json:
        echo_json(document, ensure_ascii=False)
    else:
        echo(describe(result))
    for line in missed:
        echo(f"moe4: {line}", err=True)
    if missed:
        raise typer.Exit(1)
