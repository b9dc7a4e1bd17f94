"""`moe4 compare`."""

from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

EXAMPLES = (
    "moe4 compare Kimi-K2-Instruct OUT --data held-out.jsonl",
    "moe4 compare Kimi-K2-Instruct OUT --data held-out.jsonl --num-sequences 20 --output comparison.json",
)

Dtype: TypeAlias = Annotated[
    options.DtypeOption, typer.Option(help="Type to compute in.", rich_help_panel=options.RUN)
]


def command(
    source: options.Source,
    release: options.FoundRelease,
    revision: options.Revision = None,
    data: options.HeldOutText = None,
    num_sequences: options.NumDocuments = 100,
    max_tokens: options.MaxTokens = 1024,
    dtype: Dtype = options.DtypeOption.BFLOAT16,
    device: options.Device = "cpu",
    work: options.Work = None,
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    output: options.JsonOutput = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare a release's predictions with its source's.

    Both models read the same text. Prints KL divergence, agreement and perplexities, the tokens that differ
    most, and the error of each layer and expert.
    """
    with progress("loading") as shown:
        result = moe4.compare(
            source,
            release,
            revision=revision,
            data=data,
            num_sequences=num_sequences,
            max_tokens=max_tokens,
            dtype="float32" if dtype is options.DtypeOption.FLOAT32 else "bfloat16",
            device=device,
            work=work,
            family_as_is=family_as_is,
            trust_remote_code=trust_remote_code,
            output=output,
            on_progress=shown,
        )
    echo_result(result, as_json, ensure_ascii=False)
