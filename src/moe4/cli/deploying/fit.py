"""`moe4 fit`."""

import shutil
import sys

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo, echo_json
from moe4.cli.progress import progress

EXAMPLES = (
    "moe4 fit OUT",
    "moe4 fit moonshotai/Kimi-K2-Instruct --gpu h200 --gpus 8",
    "moe4 fit OUT --gpu h100 --gpus 16 --data-parallel 16 --expert-parallel --json",
)


def command(
    release: options.SizedRelease,
    gpu: options.Gpu = None,
    gpu_memory: options.GpuMemory = None,
    gpus: options.NumGpus = None,
    tensor_parallel: options.TensorParallel = None,
    pipeline_parallel: options.PipelineParallel = None,
    data_parallel: options.DataParallel = None,
    expert_parallel: options.ExpertParallel = False,
    max_model_len: options.MaxModelLen = None,
    concurrency: options.Concurrency = 1,
    group_size: options.ConfigGroupSize = None,
    plugin: options.Plugin = False,
    disk: options.Disk = 1.0,
    as_json: options.AsJson = False,
) -> None:
    """Size a release: GPUs, memory, cache, ceiling on speed.

    Reads config.json and headers only, here or on the hub; HF_TOKEN gives access to private repositories.
    Lists all known machines. With --gpu or --gpu-memory it sizes that one, and exits with 1 if the release
    does not fit.
    """
    with progress("reading"):
        sizing = moe4.fit(
            release,
            gpu=gpu,
            gpu_memory=gpu_memory,
            gpus=gpus,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            data_parallel=data_parallel,
            expert_parallel=expert_parallel,
            max_model_len=max_model_len,
            concurrency=concurrency,
            group_size=group_size,
            plugin=plugin,
            disk=disk,
        )
    if as_json:
        echo_json(sizing.as_dict())
    else:
        echo(sizing.text(shutil.get_terminal_size().columns) if sys.stdout.isatty() else sizing)
    if not sizing.ok:
        raise typer.Exit(1)
