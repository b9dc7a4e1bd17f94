"""`moe4 deploy`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo, say
from moe4.cli.progress import progress

EXAMPLES = (
    "moe4 deploy podman OUT --gpu h200 --gpus 8 -o serve.sh",
    "moe4 deploy kserve OUT --model pvc://models/k2 --namespace llm --gpu h200 -o k2.yaml",
    "moe4 deploy quadlet OUT --engine cpu --memory 768 -o k2.container",
    "moe4 deploy dashboard OUT -o dashboards",
)

Form: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="FORM",
        help="podman, quadlet, compose, kserve, llmd, kubernetes, leaderworkerset or dashboard.",
    ),
]
DeployedRelease: TypeAlias = Annotated[
    str, typer.Argument(metavar="RELEASE", help="Folder, config.json or hub repository, as in `moe4 fit`.")
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write, or folder for a dashboard; stdout by default."),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Where the server finds the weights: pvc://CLAIM/PATH, oci://IMAGE:TAG, hf://ORG/NAME or "
        "file:///PATH; RELEASE itself if not given."
    ),
]
Name: TypeAlias = Annotated[
    str | None, typer.Option(help="Name of all objects, and of the model in requests; RELEASE's by default.")
]
Engine: TypeAlias = Annotated[
    str,
    typer.Option(
        help="vllm (its own image), rhaiis (Red Hat AI Inference Server) or cpu (moe4's).",
        rich_help_panel=options.SERVER,
    ),
]
Image: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Image to use instead, with its tag or digest.", rich_help_panel=options.SERVER),
]
Port: TypeAlias = Annotated[
    int, typer.Option(help="Port that the server listens on.", rich_help_panel=options.SERVER)
]
TrustRemoteCode: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the server run the tokenizer's code from RELEASE.",
        rich_help_panel=options.SERVER,
    ),
]
Namespace: TypeAlias = Annotated[
    str | None, typer.Option(help="Namespace of the objects.", rich_help_panel=options.OBJECTS)
]
ApiKeySecret: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Secret whose key `token` clients must send.", rich_help_panel=options.OBJECTS),
]
HfSecret: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Secret with the hub's token, for hf://.", rich_help_panel=options.OBJECTS),
]
Toleration: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--toleration",
        help="KEY, KEY=VALUE or KEY=VALUE:EFFECT; may be repeated.",
        rich_help_panel=options.OBJECTS,
    ),
]
NodeSelector: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.", rich_help_panel=options.OBJECTS)
]
Openshift: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--openshift",
        help="Set no user; OpenShift's security constraints choose one.",
        rich_help_panel=options.OBJECTS,
    ),
]


CheckAnswers: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--check-answers",
        help="Become ready only if the answers are the expected ones (kserve, kubernetes, leaderworkerset).",
        rich_help_panel=options.SERVER,
    ),
]


def command(
    form: Form,
    release: DeployedRelease,
    output: Output = None,
    model: Model = None,
    name: Name = None,
    engine: Engine = "vllm",
    image: Image = None,
    gpu: options.Gpu = None,
    gpu_memory: options.GpuMemory = None,
    gpus: options.NumGpus = None,
    memory: options.CpuMemory = None,
    data_parallel: options.DataParallel = None,
    expert_parallel: options.ExpertParallel = False,
    max_model_len: options.MaxModelLen = None,
    concurrency: options.Concurrency = 1,
    group_size: options.ConfigGroupSize = None,
    plugin: options.Plugin = False,
    port: Port = 8000,
    namespace: Namespace = None,
    api_key_secret: ApiKeySecret = None,
    hf_secret: HfSecret = None,
    tolerations: Toleration = None,
    node_selector: NodeSelector = None,
    openshift: Openshift = False,
    trust_remote_code: TrustRemoteCode = False,
    disk: options.Disk = 0.3,
    check_answers: CheckAnswers = False,
) -> None:
    """Write a deployment for a release, with each value explained.

    All values come from RELEASE and your options. Options that cannot work are refused in one line.
    """
    asked = {key: value for key, value in locals().items() if key != "output" and value is not None}
    with progress("reading"):
        made = moe4.deploy(**asked)
    if output is None:
        echo(made, nl=False)
        return
    for path in made.write(output):
        say(f"moe4: wrote {path}")
