"""`moe4 deploy`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli import options
from moe4.cli.output import echo


def command(
    form: Annotated[
        str,
        typer.Argument(
            metavar="FORM",
            help="podman, quadlet, compose, kserve, llmd, kubernetes, leaderworkerset or dashboard.",
        ),
    ],
    release: Annotated[
        str,
        typer.Argument(metavar="RELEASE", help="Folder, config.json or hub repository, as in `moe4 fit`."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, or folder for a dashboard; else stdout."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Where the server finds the weights: pvc://CLAIM/PATH, oci://IMAGE:TAG, hf://ORG/NAME or "
            "file:///PATH; RELEASE itself if not given."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of all objects, and of the model in requests; RELEASE's if not given.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="vllm (its own image), rhaiis (Red Hat AI Inference Server) or cpu (moe4's).")
    ] = "vllm",
    image: Annotated[str | None, typer.Option(help="Another image, with its tag or digest.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="l40s, a100, h100, h200, b200; the recommended one if not given.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="Memory in GiB of another GPU.")] = None,
    gpus: options.NumGpus = None,
    memory: Annotated[float | None, typer.Option(help="GiB of the CPU server, with --engine cpu.")] = None,
    data_parallel: options.DataParallel = None,
    expert_parallel: options.ExpertParallel = False,
    max_model_len: options.MaxModelLen = None,
    concurrency: options.Concurrency = 1,
    group_size: options.ConfigGroupSize = None,
    plugin: options.Plugin = False,
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    namespace: Annotated[str | None, typer.Option(help="Of the Kubernetes objects.")] = None,
    api_key_secret: Annotated[
        str | None, typer.Option(help="Secret whose key `token` clients must send.")
    ] = None,
    hf_secret: Annotated[str | None, typer.Option(help="Secret with the hub's token, for hf://.")] = None,
    toleration: Annotated[
        list[str] | None, typer.Option(help="KEY, KEY=VALUE or KEY=VALUE:EFFECT; may be repeated.")
    ] = None,
    node_selector: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    openshift: Annotated[
        bool, typer.Option("--openshift", help="Leave the user to OpenShift's security constraints.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the tokenizer's code beside the weights.")
    ] = False,
    disk: Annotated[
        float, typer.Option(help="GB/s the weights are loaded at, for the start-up probe.")
    ] = 0.3,
) -> None:
    """Write a deployment that works: every value derived from RELEASE or asked for, explained beside it.

    What cannot work is refused in one line.
    """
    from moe4.deploy.manifests.grammar import parse_node_selector
    from moe4.deploy.manifests.images import has_plugin
    from moe4.deploy.manifests.options import (
        IMAGES,
        DeployOptions,
        check_name,
        default_name,
        find_engine,
        find_form,
        find_source,
    )
    from moe4.deploy.manifests.write import write_deployment
    from moe4.deploy.sizing.choose import Wanted, pick
    from moe4.deploy.sizing.fit import read_speed
    from moe4.deploy.sizing.release_size import read_release

    speed = read_speed(disk)
    found = read_release(release, group_size)
    name = default_name(found) if name is None else name
    if form == "dashboard":
        check_name(name)
        _write_dashboard(name, output)
        return
    engine_found = find_engine(engine)
    wanted = Wanted(
        on_cpu=engine == "cpu",
        gpu=gpu,
        gpu_memory=gpu_memory,
        gpus=gpus,
        memory=memory,
        data_parallel=data_parallel,
        expert_parallel=expert_parallel,
        max_model_len=max_model_len,
        concurrency=concurrency,
        plugin=plugin or has_plugin(IMAGES[engine_found] if image is None else image),
    )
    deployment = DeployOptions(
        form=find_form(form),
        engine=engine_found,
        name=name,
        source=find_source(model, release),
        image=image,
        namespace=namespace,
        port=port,
        api_key_secret=api_key_secret,
        hf_secret=hf_secret,
        tolerations=tuple(toleration or ()),
        node_selector=parse_node_selector(node_selector or []),
        openshift=openshift,
        trust_remote_code=trust_remote_code,
        disk=speed,
    )
    text = write_deployment(deployment, found, pick(found, wanted))
    if output is None:
        echo(text, nl=False)
    else:
        _write(output, text)


def _write_dashboard(name: str, output: Path | None) -> None:
    from moe4.deploy.dashboard import alert_rules, dashboard
    from moe4.files.durable import make_folder

    board = json.dumps(dashboard(name), indent=2) + "\n"
    if output is None:
        echo(board, nl=False)
        return
    make_folder(output)
    _write(output / f"{name}-dashboard.json", board)
    _write(output / f"{name}-alerts.yaml", alert_rules(name))


def _write(path: Path, text: str) -> None:
    from moe4.files.durable import write_output

    write_output(path, text)
    echo(f"moe4: wrote {path}", err=True)
