"""`moe4 fit`."""

from typing import Annotated, Any

import typer

from moe4.cli import options
from moe4.cli.output import echo_json


def command(
    release: Annotated[
        str,
        typer.Argument(
            metavar="RELEASE",
            help="Folder of a release, a config.json, or a repository on the hub (org/name).",
        ),
    ],
    gpu: Annotated[
        str | None, typer.Option(help="GPU to fit it on: l40s, a100, h100, h200, b200, mi300x.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="Memory in GiB of a GPU that is not in the table.")
    ] = None,
    gpus: options.NumGpus = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="Split each matrix over so many GPUs.")] = None,
    pipeline_parallel: Annotated[int | None, typer.Option(help="Split the layers over so many.")] = None,
    data_parallel: options.DataParallel = None,
    expert_parallel: options.ExpertParallel = False,
    max_model_len: options.MaxModelLen = None,
    concurrency: options.Concurrency = 1,
    group_size: options.ConfigGroupSize = None,
    plugin: options.Plugin = False,
    disk: Annotated[float, typer.Option(help="Speed of the disk that is loaded from, in GB/s.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Size a release: memory per GPU, cache, speed's ceiling, on one machine or all of the table.

    Reads config.json and headers only, here or on the hub; a private repository takes HF_TOKEN from the
    environment. With --gpu or --gpu-memory the exit code is 1 if it does not work there.
    """
    from rich.console import Console

    from moe4.deploy.sizing.asked import Asked, size_release
    from moe4.deploy.sizing.choose import Survey
    from moe4.deploy.sizing.describe import fit_facts, print_fits, print_release, print_survey, release_facts
    from moe4.deploy.sizing.fit import read_speed
    from moe4.deploy.sizing.release_size import read_release

    speed = read_speed(disk)
    found = read_release(release, group_size)
    asked = Asked(
        gpu=gpu,
        gpu_memory=gpu_memory,
        gpus=gpus,
        tensor=tensor_parallel,
        pipeline=pipeline_parallel,
        data=data_parallel,
        expert_parallel=expert_parallel,
        max_model_len=max_model_len,
        concurrency=concurrency,
        plugin=plugin,
    )
    sized = size_release(found, asked)
    console = Console(width=None if Console().is_terminal else 160)
    facts: dict[str, Any] = {"release": release_facts(found, speed)}
    if isinstance(sized, Survey):
        if as_json:
            picked = {"smallest": sized.smallest, "recommended": sized.recommended}
            facts |= {"fits": [fit_facts(item) for item in sized.fits]}
            facts |= {name: item and fit_facts(item) for name, item in picked.items()}
            echo_json(facts)
        else:
            print_release(console, found, speed)
            print_survey(console, sized)
        return
    if as_json:
        echo_json(facts | {"fit": fit_facts(sized)})
    else:
        print_release(console, found, speed)
        print_fits(console, [sized])
        if sized.longest and sized.longest < sized.max_model_len:
            console.print(f"it would start with --max-model-len {sized.longest} or less", highlight=False)
    if not sized.works:
        raise typer.Exit(1)
