"""`moe4 toolcheck`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

BASELINE = "Baseline"
ASKING = "Asking"
EXAMPLES = (
    "moe4 toolcheck http://127.0.0.1:8000/v1",
    "moe4 toolcheck http://127.0.0.1:8000/v1 --against http://127.0.0.1:8001/v1 --requests tools.jsonl",
    "moe4 toolcheck http://127.0.0.1:8000/v1 --threshold schema_accuracy=1 --output answers.jsonl",
)

Url: TypeAlias = Annotated[
    str, typer.Argument(metavar="URL", help="OpenAI-compatible server, such as moe4 serve's.")
]
Against: TypeAlias = Annotated[
    str | None,
    typer.Option(help="URL of the baseline: the model before quantization.", rich_help_panel=BASELINE),
]
AgainstModel: TypeAlias = Annotated[
    str | None, typer.Option(help="Name of the baseline's model.", rich_help_panel=BASELINE)
]
Reference: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Results of another run; its decisions to call are the reference.", rich_help_panel=BASELINE
    ),
]
Output: TypeAlias = Annotated[
    Path | None, typer.Option(help="JSONL file for all answers; an interrupted run continues from it.")
]
Limit: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Send only the first N requests of each file.")
]
Concurrency: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Number of requests at the same time.", rich_help_panel=ASKING)
]
Retries: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Number of retries if a request fails.", rich_help_panel=ASKING)
]
Timeout: TypeAlias = Annotated[
    float, typer.Option(min=1, help="Seconds to wait for an answer.", rich_help_panel=ASKING)
]
KeepSampling: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--keep-sampling",
        help="Send the requests' own temperature, instead of greedy decoding.",
        rich_help_panel=ASKING,
    ),
]
Stream: TypeAlias = Annotated[
    bool,
    typer.Option("--stream/--no-stream", help="Send each request streamed as well.", rich_help_panel=ASKING),
]
Threshold: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--threshold", help="NAME=SHARE that a measure must reach; may be repeated."),
]


def command(
    url: Url = "http://127.0.0.1:8000/v1",
    model: options.ServedModel = None,
    against: Against = None,
    against_model: AgainstModel = None,
    requests: options.Requests = None,
    reference: Reference = None,
    output: Output = None,
    limit: Limit = None,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    timeout: Timeout = 600.0,
    keep_sampling: KeepSampling = False,
    stream: Stream = True,
    thresholds: Threshold = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a server's tool calls: decisions, schemas, streaming.

    Exits with 1 if a threshold is missed. Without --requests it sends the hard cases that come with moe4.
    The variable VLLM_API_KEY holds the API key.
    """
    with progress("loading") as shown:
        result = moe4.toolcheck(
            url,
            model=model,
            against=against,
            against_model=against_model,
            requests=requests or (),
            reference=reference,
            output=output,
            limit=limit,
            concurrency=concurrency,
            retries=retries,
            timeout=timeout,
            keep_sampling=keep_sampling,
            stream=stream,
            thresholds=thresholds or (),
            on_progress=shown,
        )
    echo_result(result, as_json, ensure_ascii=False)
    if not result.ok:
        raise typer.Exit(1)
