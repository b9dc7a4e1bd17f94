"""`moe4 serve`."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.output import echo, echo_json
from moe4.cli.source import Revision, find
from moe4.errors import ServeError

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    context: typer.Context,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="Folder of the release, or of any checkpoint vLLM can load; or its id on the hub.",
        ),
    ],
    revision: Revision = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")] = 8000,
    max_model_len: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens a conversation may have, also as 32k or 32K; the model's own limit if not given.",
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int,
        typer.Option("--tensor-parallel-size", "-tp", help="GPUs (or CPU ranks) to split the model over."),
    ] = 1,
    rest: Annotated[
        str,
        typer.Option(
            help="On a CPU, the type of all that is not routed experts: bfloat16, or int8 at a small loss.",
            metavar="TYPE",
        ),
    ] = "bfloat16",
    expert_cache: Annotated[
        float | None,
        typer.Option(
            help="On a CPU, GB of memory for experts read past the system's cache; 0 leaves them to the "
            "system.",
            metavar="GB",
            show_default="most of what is free, if they do not fit into it",
        ),
    ] = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Let /metrics answer without the API key.")
    ] = False,
    no_probe: Annotated[
        bool,
        typer.Option("--no-probe", help="Serve without checking the release's expected answers first."),
    ] = False,
    log: Annotated[
        Path | None, typer.Option(help="File for vLLM's log; a temporary one if not given.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show vLLM's log on stderr as well.")] = False,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Only print the command, with the variables it sets.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the command or the ready line as JSON.")
    ] = False,
) -> None:
    """Serve the release in OUT with vLLM behind an OpenAI-compatible API.

    When it is ready the server is asked for the release's expected answers, and PASS or FAIL is said.

    Further options go to vLLM as they are. An API key is taken from the variable VLLM_API_KEY; requests for
    anything but /health and /ping must then carry it.
    """
    from moe4.serve.command import ServeOptions, build_command, read_tokens
    from moe4.serve.extra import hide_arguments, take_keys
    from moe4.serve.host import free_port, inspect_host, is_loopback
    from moe4.serve.model import read_served_model

    if out.startswith("-"):
        raise ServeError(
            f"give the release's folder first, then vLLM's options: found {out.partition('=')[0]}"
        )
    if log is not None and not log.parent.is_dir():
        raise ServeError(f"--log {log}: there is no folder {log.parent}; create it, or give another file")
    folder = find(out, revision)
    model = read_served_model(folder)
    machine = inspect_host()
    options = ServeOptions(
        host=host,
        port=port if print_command else free_port(host, port),
        max_model_len=None if max_model_len is None else read_tokens(max_model_len),
        tensor_parallel_size=tensor_parallel_size,
        expert_cache_gb=expert_cache,
        rest=rest,
        open_metrics=open_metrics,
        extra=tuple(context.args),
    )
    built = build_command(model, machine, options, dict(os.environ))
    hide_arguments(take_keys(options.extra)[1])
    if print_command:
        if as_json:
            echo_json(built.as_dict())
        else:
            echo(built.shell_line())
        return

    from rich.console import Console

    from moe4.serve.process import LogFollower, new_log_path
    from moe4.serve.run import run_server

    log_path = log or new_log_path(options.port)
    echo(built.shell_line(), err=True)
    echo(f"moe4: vLLM's log: {log_path}", err=True)
    if built.key is None and not is_loopback(host):
        echo(
            f"moe4: no API key: whoever reaches port {options.port} may use the model; set VLLM_API_KEY",
            err=True,
        )
    wait = "starting vLLM: half a minute, longer for a large model"
    run_server(
        built,
        folder,
        log_path,
        check=not no_probe,
        follow=LogFollower(log_path, sys.stderr) if verbose else lambda: None,
        while_waiting=contextlib.nullcontext() if verbose else Console(stderr=True).status(wait),
        say=lambda text: echo(text, err=True),
        on_ready=lambda ready: echo_json(ready.as_dict()) if as_json else echo(ready.describe()),
    )
    echo("moe4: the server has stopped", err=True)
