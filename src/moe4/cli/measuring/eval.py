"""`moe4 eval`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

SERVED = "Ask a server"
DATA = "Tasks and data"
EXAMPLES = (
    "moe4 eval OUT --against Kimi-K2-Instruct --task gsm8k",
    "moe4 eval OUT --task gsm8k --limit 100 -tp 8 --output scores.json",
    "moe4 eval k2 --base-url http://127.0.0.1:8000/v1 --task gsm8k",
)

Model: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder of a release or checkpoint; with --base-url, its name."),
]
Against: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Baseline, asked the same questions: the checkpoint before quantization."),
]
Task: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="Task or group of lm-evaluation-harness, or k2_tiny_problems(_0shot); may be repeated.",
        rich_help_panel=DATA,
    ),
]
DataDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder of k2-tiny's problems; the reference data by default.", rich_help_panel=DATA),
]
Gsm8kDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder with GSM8K's train.jsonl and test.jsonl; implies --task gsm8k.", rich_help_panel=DATA
    ),
]
IncludePath: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder with more tasks, in the harness's YAML format.", rich_help_panel=DATA),
]
BaseUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Ask this OpenAI-compatible server instead of starting vLLM.", rich_help_panel=SERVED),
]
Tokenizer: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="With --base-url: folder of the tokenizer, which multiple-choice tasks need.",
        rich_help_panel=SERVED,
    ),
]
Revision: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="With --base-url: a name for a remote server's weights, for the cache.",
        rich_help_panel=SERVED,
    ),
]
UseCache: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--cached/--no-cache",
        help="Reuse kept answers, and keep new ones.",
        rich_help_panel=options.RUN,
    ),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Also write the scores and every answer to this JSON file.", rich_help_panel=options.RUN
    ),
]


def command(
    model: Model,
    against: Against = None,
    tasks: Task = None,
    limit: options.Limit = None,
    data_dir: DataDir = None,
    gsm8k_dir: Gsm8kDir = None,
    base_url: BaseUrl = None,
    tensor_parallel_size: options.TensorParallelSize = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    include_path: IncludePath = None,
    tokenizer: Tokenizer = None,
    cache: options.Cache = None,
    use_cache: UseCache = True,
    revision: Revision = None,
    output: Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a model with lm-evaluation-harness.

    Prints scores with standard errors. With --against it adds recovery with its interval, and says whether
    the change is within noise. It keeps answers, so an interrupted evaluation continues, and a repeated
    one asks nothing again.

    Without --task it compares predictions with those of --against, or checks a server's tool calls.
    """
    with progress("loading") as shown:
        scores = moe4.eval(
            model,
            against=against,
            tasks=tasks or (),
            limit=limit,
            data_dir=data_dir,
            gsm8k_dir=gsm8k_dir,
            base_url=base_url,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=trust_remote_code,
            include_path=include_path,
            tokenizer=tokenizer,
            cache=cache,
            use_cache=use_cache,
            revision=revision,
            output=output,
            on_progress=shown,
        )
    echo_result(scores, as_json, ensure_ascii=False)
