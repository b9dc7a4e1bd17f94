"""`moe4 lint`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo, echo_json, say
from moe4.cli.progress import progress
from moe4.errors import UNREAD_EXIT_CODE, DeployError

SCHEMAS = "Schemas"
EXAMPLES = (
    "moe4 lint deployment.yaml --release OUT --gpu h200",
    "moe4 lint *.yaml --crds crds/ --sarif",
    "moe4 lint charts/k2 values-production.yaml",
    "moe4 lint README.md --fix",
)

Files: TypeAlias = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="YAML, JSON, quadlet units, shell scripts, Markdown with code blocks; Helm charts and "
        "kustomizations, also as folders.",
    ),
]
ServedRelease: TypeAlias = Annotated[
    str | None,
    typer.Option(help="The release to serve, as in `moe4 fit`; without it lint does not check sizes."),
]
Plugin: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--plugin", help="Assume that the images have moe4's plugin, even if their names do not show it."
    ),
]
Crds: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of CustomResourceDefinitions to check objects against.", rich_help_panel=SCHEMAS
    ),
]
Cluster: TypeAlias = Annotated[
    bool,
    typer.Option("--cluster", help="Take the CRDs from kubectl's cluster.", rich_help_panel=SCHEMAS),
]
Fix: TypeAlias = Annotated[bool, typer.Option("--fix", help="Fix what can be fixed safely, then lint again.")]
AsSarif: TypeAlias = Annotated[bool, typer.Option("--sarif", help="Print the findings as SARIF 2.1.0.")]


def command(
    files: Files,
    release: ServedRelease = None,
    gpu: options.Gpu = None,
    gpu_memory: options.GpuMemory = None,
    group_size: options.ConfigGroupSize = None,
    plugin: Plugin = False,
    disk: options.Disk = 1.0,
    crds: Crds = None,
    cluster: Cluster = False,
    fix: Fix = False,
    as_json: options.AsJson = False,
    as_sarif: AsSarif = False,
) -> None:
    """Find what keeps a deployment from working.

    Exits with 1 if there is an error, and with 3 if there is none but lint did not examine something, such as
    a kind that it does not know, or a chart without helm. It examines all files together, so that a service
    finds its runtime.
    """
    if as_json and as_sarif:
        raise DeployError("give --json or --sarif, not both")
    with progress("reading"):
        result = moe4.lint(
            files,
            release=release,
            gpu=gpu,
            gpu_memory=gpu_memory,
            group_size=group_size,
            plugin=plugin,
            disk=disk,
            crds=crds,
            cluster=cluster,
            fix=fix,
        )
    for mended in result.mended:
        say(f"moe4: mended {mended.file}:{mended.line}: {mended.rule}")
    if as_sarif:
        echo_json(result.as_sarif(), indent=2)
    elif as_json:
        echo_json(result.as_list())
    else:
        for finding in result.findings:
            echo(finding.describe())
    say(f"moe4: {result.totals()}")
    if not result.ok or result.count("unread"):
        raise typer.Exit(UNREAD_EXIT_CODE if result.ok else 1)
