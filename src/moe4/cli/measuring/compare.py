"""`moe4 compare`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.options import TrustRemoteCode
from moe4.cli.output import echo, echo_json
from moe4.cli.source import Revision, find


class DtypeOption(enum.StrEnum):
    """What the layers compute in."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder of the source checkpoint, or its id on the hub."),
    ],
    release: Annotated[
        str, typer.Argument(metavar="RELEASE", help="Folder of its release, or ID[@REVISION] on the hub.")
    ],
    revision: Revision = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of held-out {messages} or {text}, moe4's own if not given; reference: k2-tiny's."
        ),
    ] = None,
    num_sequences: Annotated[int, typer.Option(min=1, help="Documents to read.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longer documents are cut.")] = 1024,
    dtype: Annotated[DtypeOption, typer.Option(help="What to compute in.")] = DtypeOption.BFLOAT16,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    work: Annotated[
        Path | None, typer.Option(help="Folder for hidden states; the one for temporary files if not given.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare a release's predictions with its source's on a text, layer by layer, token by token.

    KL divergence, agreement, perplexities; the worst tokens, and the layers and experts where error enters.
    """
    from moe4.evaluate.comparison.compare import CompareOptions, compare, describe
    from moe4.evaluate.harness.evaluation import write_json
    from moe4.evaluate.result_files import to_json
    from moe4.files.durable import check_output

    if output is not None:
        check_output(output)
    result = compare(
        CompareOptions(
            source=find(source, revision),
            release=find(release),
            data=data,
            num_sequences=num_sequences,
            max_sequence_tokens=max_tokens,
            compute_dtype="float32" if dtype is DtypeOption.FLOAT32 else "bfloat16",
            device=device,
            work=work,
            trust_remote_code=trust_remote_code,
        ),
        say=lambda text: echo(text, err=True),
    )
    if output is not None:
        write_json(output, to_json(result))
    if as_json:
        echo_json(to_json(result), ensure_ascii=False)
    else:
        echo(describe(result))
