"""`moe4 lint`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli import options
from moe4.cli.output import echo, echo_json


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="YAML, JSON, quadlet units, shell scripts, Markdown with code blocks."
        ),
    ],
    release: Annotated[
        str | None,
        typer.Option(help="What is to be served, as in `moe4 fit`; without it sizes are not judged."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The GPU that is there; if not given, the largest of the table.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="Memory in GiB of another GPU.")] = None,
    group_size: options.ConfigGroupSize = None,
    plugin: Annotated[
        bool,
        typer.Option("--plugin", help="The images have moe4's plugin, though their names do not say so."),
    ] = False,
    disk: Annotated[float, typer.Option(help="GB/s the weights are loaded at, at best.")] = 1.0,
    crds: Annotated[
        Path | None, typer.Option(help="Folder of CustomResourceDefinition files to check objects against.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Take the CRDs from the cluster that kubectl speaks to.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend, then lint again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print the findings as SARIF 2.1.0.")] = False,
) -> None:
    """Find what keeps a deployment from working; exit 1 if there is an error.

    Exit 3 if there is none, and something was not looked at: Helm charts, kustomizations, unknown kinds.
    Files are looked at together, so that a service finds its runtime.
    """
    from moe4.deploy.lint.rules import Context
    from moe4.deploy.lint.run import fix_files, lint_files
    from moe4.deploy.lint.sarif import sarif
    from moe4.deploy.lint.schema import read_schemas
    from moe4.deploy.sizing.fit import read_speed
    from moe4.deploy.sizing.machines import asked_gpu
    from moe4.deploy.sizing.release_size import read_release
    from moe4.errors import UNREAD_EXIT_CODE, DeployError

    if as_json and as_sarif:
        raise DeployError("give --json or --sarif, not both")
    speed = read_speed(disk)
    device = None if gpu is None and gpu_memory is None else asked_gpu(gpu, gpu_memory)
    context = Context(
        release=read_release(release, group_size) if release else None,
        device=device,
        disk=speed,
        plugin=plugin,
    )
    schemas = read_schemas(crds, cluster)
    if fix:
        for mended in fix_files(files, context, schemas):
            echo(f"moe4: mended {mended.file}:{mended.line}: {mended.rule}", err=True)
    findings = lint_files(files, context, schemas)
    if as_sarif:
        echo_json(sarif(findings), indent=2)
    elif as_json:
        echo_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            echo(finding.describe())
    levels = [finding.level for finding in findings]
    errors, warnings, not_read = levels.count("error"), levels.count("warning"), levels.count("unread")
    missing = [] if schemas else ["schemas (--crds, --cluster)"]
    missing += [] if release else ["sizes (--release)"]
    unseen = f"; not checked: {', '.join(missing)}" if missing else ""
    skipped = f", {not_read} not read" if not_read else ""
    echo(f"moe4: {errors} errors, {warnings} warnings{skipped} in {len(files)} files{unseen}", err=True)
    if errors or not_read:
        raise typer.Exit(1 if errors else UNREAD_EXIT_CODE)
