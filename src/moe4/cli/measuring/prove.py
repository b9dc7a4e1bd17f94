"""`moe4 prove`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result, warn
from moe4.cli.progress import progress

BARS = "Bars"
EXAMPLES = (
    "moe4 prove Kimi-K2-Instruct OUT --task gsm8k --data held-out.jsonl -tp 8",
    "moe4 prove Kimi-K2-Instruct OUT --task gsm8k --data held-out.jsonl --quick",
    "moe4 prove Kimi-K2-Instruct OUT --data held-out.jsonl --skip evaluation --skip tools",
)

Quick: TypeAlias = Annotated[
    bool, typer.Option("--quick", help="Use only a hundred questions, twenty texts and forty tool requests.")
]
Task: TypeAlias = Annotated[
    list[str] | None, typer.Option("--task", help="As in `moe4 eval`; may be repeated.")
]
Gsm8kDir: TypeAlias = Annotated[Path | None, typer.Option(help="As in `moe4 eval`; implies --task gsm8k.")]
Skip: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Leave out evaluation, comparison, tools or probe; may be repeated.")
]
MinRecovery: TypeAlias = Annotated[
    float,
    typer.Option(help="Exit with 1 if recovery is significantly below this share.", rich_help_panel=BARS),
]
MinAgreement: TypeAlias = Annotated[
    float,
    typer.Option(
        help="Exit with 1 if tool decisions agree significantly less often than this share.",
        rich_help_panel=BARS,
    ),
]
Again: TypeAlias = Annotated[
    bool,
    typer.Option("--again", help="Repeat measurements that are done already.", rich_help_panel=options.RUN),
]


def command(
    source: options.Source,
    release: options.Release,
    revision: options.Revision = None,
    quick: Quick = False,
    tasks: Task = None,
    gsm8k_dir: Gsm8kDir = None,
    limit: options.Limit = None,
    data: options.HeldOutText = None,
    requests: options.Requests = None,
    skip: Skip = None,
    min_recovery: MinRecovery = 0.99,
    min_agreement: MinAgreement = 0.97,
    cache: options.Cache = None,
    again: Again = False,
    repo: options.Repo = None,
    base_model: options.BaseModel = None,
    license_name: options.LicenseName = None,
    tensor_parallel_size: options.TensorParallelSize = 1,
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure what quantization cost; write a report and a card.

    Runs verify, eval, compare, toolcheck and probe. Results go to RELEASE/proof, and an interrupted run
    continues. What cannot be measured on this machine is left out and named.
    """
    with progress("loading") as shown:
        result = moe4.prove(
            source,
            release,
            revision=revision,
            quick=quick,
            tasks=tasks or (),
            gsm8k_dir=gsm8k_dir,
            limit=limit,
            data=data,
            requests=requests or (),
            skip=skip or (),
            min_recovery=min_recovery,
            min_agreement=min_agreement,
            cache=cache,
            again=again,
            repo=repo,
            base_model=base_model,
            license_name=license_name,
            tensor_parallel_size=tensor_parallel_size,
            family_as_is=family_as_is,
            trust_remote_code=trust_remote_code,
            on_progress=shown,
        )
    echo_result(result, as_json, ensure_ascii=False)
    for line in result.failures:
        warn(f"moe4: {line}")
    if not result.ok:
        raise typer.Exit(1)
