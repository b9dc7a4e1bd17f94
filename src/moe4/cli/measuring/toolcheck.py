"""`moe4 toolcheck`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.output import echo, echo_json


def command(
    base_url: Annotated[
        str, typer.Argument(metavar="URL", help="OpenAI-compatible server, such as moe4 serve's.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[str | None, typer.Option(help="Name of the model; the server's first.")] = None,
    against: Annotated[
        str | None, typer.Option(help="URL of the baseline: the model before quantization.")
    ] = None,
    against_model: Annotated[str | None, typer.Option(help="Name of the baseline's model.")] = None,
    requests: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSONL of request bodies, also the K2 Vendor Verifier's; may be repeated. "
            "moe4's hard cases if not given; reference: with k2-tiny's turns."
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Results of another run, whose decisions to call are the reference.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSONL of all answers; a run that was cut off goes on from it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N requests of each file.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts at a request that fails.")] = 3,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 600.0,
    keep_sampling: Annotated[
        bool, typer.Option("--keep-sampling", help="Send the requests' own temperature; else greedy.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Also ask everything streamed.")
    ] = True,
    threshold: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE that must be reached; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check how a server calls tools: decisions, schemas, ids, streaming; exit 1 where a threshold is missed.

    Without --requests the hard cases that come with moe4 are asked. A key is taken from VLLM_API_KEY.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from moe4.evaluate.result_files import to_json
    from moe4.evaluate.toolcheck import ToolcheckOptions, describe, failed_checks, run_toolcheck

    options = ToolcheckOptions(
        base_url=base_url,
        model=model,
        against=against,
        against_model=against_model,
        requests=tuple(requests or ()),
        reference=reference,
        output=output,
        limit=limit,
        concurrency=concurrency,
        max_retries=retries,
        timeout_seconds=timeout,
        keep_sampling=keep_sampling,
        stream=stream,
        thresholds=tuple(threshold or ()),
    )
    columns = TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        result = run_toolcheck(options, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        echo_json(to_json(result), ensure_ascii=False)
    else:
        echo(describe(result))
    if failed_checks(result):
        raise typer.Exit(1)
