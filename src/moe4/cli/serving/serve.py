"""`moe4 serve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

import moe4
from moe4.api.command_server import check_log, find_release, hide_keys, is_open, make_log, run_server
from moe4.cli import messages, options
from moe4.cli.messages import echo, echo_json, say
from moe4.cli.progress import progress
from moe4.errors import ServeError

if TYPE_CHECKING:
    from moe4.serve.command import ServeCommand
    from moe4.serve.run import Ready

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
CPU = "On a CPU"
START = "Start"
EXAMPLES = (
    "moe4 serve OUT",
    "moe4 serve OUT --host 0.0.0.0 --port 8080 -tp 8 --max-model-len 32k",
    "moe4 serve OUT --expert-cache 400 --rest int8",
    "moe4 serve OUT --print-command --max-num-seqs 16",
)

Served: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="Folder of a release, or of any checkpoint that vLLM can load; or an id on the hub.",
    ),
]
Host: TypeAlias = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=options.SERVER)]
Port: TypeAlias = Annotated[
    int,
    typer.Option(help="Port to listen on; 0 chooses a free one.", rich_help_panel=options.SERVER),
]
MaxModelLen: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS",
        help="Longest conversation, in tokens, also as 32k or 32K; the model's own limit by default.",
        rich_help_panel=options.SERVER,
    ),
]
TensorParallelSize: TypeAlias = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size",
        "-tp",
        help="GPUs (or CPU ranks) to split the model over.",
        rich_help_panel=options.SERVER,
    ),
]
OpenMetrics: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--open-metrics",
        help="Answer /metrics without the API key.",
        rich_help_panel=options.SERVER,
    ),
]
Rest: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Type of everything but the routed experts: bfloat16; int8 or int4, faster and less exact.",
        metavar="TYPE",
        rich_help_panel=CPU,
    ),
]
ExpertCache: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Memory for a cache of experts, in GB; 0 uses the system's page cache instead.",
        metavar="GB",
        show_default="80% of free memory, if the experts do not fit into it",
        rich_help_panel=CPU,
    ),
]
NoProbe: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--no-probe",
        help="Serve without checking the release's expected answers first.",
        rich_help_panel=START,
    ),
]
Log: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="File for vLLM's log; a temporary file by default.", rich_help_panel=START),
]
PrintCommand: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--print-command",
        help="Only print the command, with the variables it sets.",
        rich_help_panel=START,
    ),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the command or the ready line as JSON.")
]


def command(
    context: typer.Context,
    out: Served,
    revision: options.Revision = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_model_len: MaxModelLen = None,
    tensor_parallel_size: TensorParallelSize = 1,
    rest: Rest = "bfloat16",
    expert_cache: ExpertCache = None,
    open_metrics: OpenMetrics = False,
    no_probe: NoProbe = False,
    log: Log = None,
    print_command: PrintCommand = False,
    as_json: AsJson = False,
) -> None:
    """Serve a release with vLLM, with an OpenAI-compatible API.

    Once the server is up, moe4 asks it for the release's expected answers and prints PASS or FAIL.

    Options that moe4 does not know go to vLLM. If the variable VLLM_API_KEY is set, requests for anything
    but /health and /ping must carry that key.
    """
    if out.startswith("-"):
        found = out.partition("=")[0]
        raise ServeError(f"give the release's folder first, then vLLM's options: found {found}")
    check_log(log)
    hide_keys(context.args)
    with progress("loading") as shown:
        folder = find_release(out, revision, shown)
    built = moe4.serve_command(
        folder,
        host=host,
        port=port,
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        rest=rest,
        expert_cache=expert_cache,
        open_metrics=open_metrics,
        vllm_options=context.args,
        find_port=not print_command,
    )
    if print_command:
        if as_json:
            echo_json(built.as_dict())
        else:
            echo(built.shell_line())
        return
    _run(built, folder, log or make_log(built.port), host, no_probe, as_json)


def _run(built: "ServeCommand", folder: Path, log: Path, host: str, no_probe: bool, as_json: bool) -> None:
    """Start vLLM and wait until it ends."""
    say(built.shell_line())
    say(f"moe4: vLLM's log: {log}")
    if built.key is None and is_open(host):
        say(f"moe4: no API key: whoever reaches port {built.port} may use the model; set VLLM_API_KEY")
    with progress("starting vLLM") as shown:

        def show_ready(ready: "Ready") -> None:
            shown.stop()
            if as_json:
                echo_json(ready.as_dict())
            else:
                echo(ready.describe())

        show_log = messages.current.verbosity > 0
        if show_log:
            shown.stop()
        run_server(
            built,
            folder,
            log,
            check=not no_probe,
            show_log=show_log,
            on_ready=show_ready,
            on_progress=shown,
        )
    say("moe4: the server has stopped")
