"""`moe4 eval`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.options import TrustRemoteCode
from moe4.cli.output import echo, echo_json


def command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Folder of a release or checkpoint; with --base-url, its name."),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="The baseline: the checkpoint before quantization, on the same questions."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task or group of lm-evaluation-harness, or k2_tiny_problems(_0shot); may be repeated."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions of each task.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of k2-tiny's problems; the reference data's if not given.")
    ] = None,
    gsm8k_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with GSM8K's train.jsonl and test.jsonl; asked without --task."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Ask this OpenAI-compatible server instead of starting vLLM.")
    ] = None,
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "-tp", min=1, help="GPUs to split the model over.")
    ] = 1,
    trust_remote_code: TrustRemoteCode = False,
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with more tasks in the harness' YAML form.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="With --base-url: folder of the tokenizer, for tasks that rank given answers."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the answers already given; ~/.cache/moe4/evaluations.")
    ] = None,
    use_cache: Annotated[
        bool, typer.Option("--cached/--no-cache", help="Take answers already given, and keep new ones.")
    ] = True,
    revision: Annotated[
        str | None,
        typer.Option(help="With --base-url: names the weights behind a remote server, for the cache."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write the scores and every answer to this JSON file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Evaluate MODEL with lm-evaluation-harness, beside a baseline if one is given.

    Scores with standard errors; recovery with its interval, and whether the change is within noise. Answers
    are kept: a killed evaluation goes on where it was, a repeated one asks nothing.

    Without --task it measures what any model allows: predictions beside --against, or a server's tool calls.
    """
    from moe4.evaluate.harness.evaluation import EvaluationOptions, run_evaluation, write_scores

    options = EvaluationOptions(
        model=model,
        against=against,
        tasks=tuple(task or ()),
        limit=limit,
        data_folder=data_dir,
        gsm8k_folder=gsm8k_dir,
        base_url=base_url,
        tensor_parallel_size=tensor_parallel_size,
        trust_remote_code=trust_remote_code,
        output=output,
        include_path=include_path,
        tokenizer=tokenizer,
        cache_folder=cache,
        use_cache=use_cache,
        revision=revision,
    )

    def say(text: str) -> None:
        echo(text, err=True)

    if not options.names_a_task:
        from moe4.evaluate.without_tasks import measure_without_tasks

        found = measure_without_tasks(options, say)
        if as_json:
            echo_json(found.as_dict(), ensure_ascii=False)
        else:
            echo(found.describe())
        return
    comparison = run_evaluation(options, say)
    if output is not None:
        write_scores(output, comparison)
    if as_json:
        echo_json(comparison.as_dict(), ensure_ascii=False)
    else:
        echo(comparison.table())
