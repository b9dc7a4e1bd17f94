"""`moe4 fit`."""

import json
import os
from typing import Annotated

import typer

from moe4.cli import options
from moe4.cli.output import echo


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

    from moe4.deploy.sizing.choose import default_layout, smallest_of, survey
    from moe4.deploy.sizing.choose import layouts as usual_layouts
    from moe4.deploy.sizing.describe import fit_facts, print_fits, print_release, print_survey, release_facts
    from moe4.deploy.sizing.fit import Layout, fit, read_speed
    from moe4.deploy.sizing.machines import asked_gpu
    from moe4.deploy.sizing.release_size import read_release
    from moe4.errors import DeployError

    speed = read_speed(disk)
    found = read_release(release, group_size, os.environ.get("HF_TOKEN"))
    console = Console(width=None if Console().is_terminal else 160)
    sizes = (tensor_parallel, pipeline_parallel, data_parallel)
    asked = expert_parallel or any(size is not None for size in sizes)
    if gpu is None and gpu_memory is None:
        if gpus is not None or asked:
            raise DeployError("--gpus and the parallel sizes need --gpu or --gpu-memory")
        table = survey(found, max_model_len=max_model_len, concurrency=concurrency, plugin=plugin)
        if as_json:
            picked = {"smallest": table.smallest, "recommended": table.recommended}
            facts = {name: item and fit_facts(item) for name, item in picked.items()}
            rows = [fit_facts(item) for item in table.fits]
            echo(json.dumps({"release": release_facts(found, speed), "fits": rows, **facts}))
        else:
            print_release(console, found, speed)
            print_survey(console, table)
        return
    device = asked_gpu(gpu, gpu_memory)
    if asked:
        tensor, pipeline, data = (1 if size is None else size for size in sizes)
        tried = [Layout(tensor=tensor, pipeline=pipeline, data=data, expert_parallel=expert_parallel)]
        if gpus is not None and gpus != tried[0].num_gpus:
            raise DeployError(f"--gpus {gpus} is not the {tried[0].num_gpus} GPUs of {tried[0].describe()}")
    elif gpus is not None:
        tried = [default_layout(found, device, gpus, plugin=plugin)]
    else:
        tried = list(usual_layouts(found, device, plugin=plugin))
    fits = [
        fit(found, device, layout, max_model_len=max_model_len, concurrency=concurrency, plugin=plugin)
        for layout in tried
    ]
    best = smallest_of(fits)
    assert best is not None
    if as_json:
        echo(json.dumps({"release": release_facts(found, speed), "fit": fit_facts(best)}))
    else:
        print_release(console, found, speed)
        print_fits(console, [best])
        if best.longest and best.longest < best.max_model_len:
            console.print(f"it would start with --max-model-len {best.longest} or less", highlight=False)
    if not best.works:
        raise typer.Exit(1)
