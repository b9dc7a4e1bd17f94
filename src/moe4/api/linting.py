"""Lint deployment files. Nothing here needs torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe4.api.operation import PathLike, Source, Text, operation, optional_path, paths
from moe4.arguments import argument
from moe4.strict_json import JsonObject
from moe4.units import counted

if TYPE_CHECKING:
    from moe4.deploy.lint.finding import Finding


@dataclass(frozen=True, kw_only=True, slots=True)
class LintResult:
    """Findings in deployment files. mended: what was fixed. unchecked: what needs an option not given."""

    findings: "tuple[Finding, ...]"
    mended: "tuple[Finding, ...]"
    num_files: int
    unchecked: tuple[str, ...]

    def count(self, level: str) -> int:
        """Return the number of findings of a level: `error`, `warning`, `note` or `unread`."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether no error was found. Files counted by `count("unread")` may hold some."""
        return not self.count("error")

    def as_list(self) -> list[JsonObject]:
        """Return the findings as plain JSON types."""
        return [finding.as_dict() for finding in self.findings]

    def as_sarif(self) -> JsonObject:
        """Return the findings as SARIF 2.1.0."""
        from moe4.deploy.lint.sarif import sarif

        return sarif(list(self.findings))

    def totals(self) -> str:
        """Return one line: the number of findings of each level, and what was not checked."""
        not_read = self.count("unread")
        skipped = f", {not_read} not read" if not_read else ""
        unseen = f"; not checked: {', '.join(self.unchecked)}" if self.unchecked else ""
        found = ", ".join(counted(self.count(level), level) for level in ("error", "warning"))
        return f"{found}{skipped} in {counted(self.num_files, 'file')}{unseen}"

    def __str__(self) -> str:
        return "\n".join([*(finding.describe() for finding in self.findings), self.totals()])


@operation
def lint(
    files: Sequence[PathLike],
    *,
    release: Source | None = None,
    gpu: Text | None = None,
    gpu_memory: float | None = None,
    group_size: int | None = None,
    plugin: bool = False,
    disk: float = 1.0,
    crds: PathLike | None = None,
    cluster: bool = False,
    fix: bool = False,
) -> LintResult:
    """Find what keeps a deployment from working. All files are examined together.

    files: YAML, JSON, quadlet units, shell scripts or Markdown; Helm charts, with files of values, and
    kustomizations, which `helm`, `kustomize` or `kubectl` renders if it is installed.
    release, group_size: the release to serve, as in `fit`; without one, sizes are not checked.
    gpu, gpu_memory: the GPU of the machine.
    plugin: the images have moe4's plugin. disk: GB/s at which weights load.
    crds: folder of CustomResourceDefinition files; cluster: take them from kubectl's cluster.
    fix: first fix what can be fixed safely. Raises DeployError or MissingFileError.

        >>> found = moe4.lint(["deployment.yaml"], release="release")
        >>> [finding.rule for finding in found.findings if finding.level == "error"]
        []
    """
    from moe4.deploy.lint.checks.needs import Context
    from moe4.deploy.lint.run import fix_files, lint_files
    from moe4.deploy.lint.schema import read_schemas
    from moe4.deploy.sizing.fit import read_speed
    from moe4.deploy.sizing.machines import asked_gpu
    from moe4.deploy.sizing.release_size import read_release

    speed = read_speed(disk)
    device = None if gpu is None and gpu_memory is None else asked_gpu(gpu, gpu_memory)
    size = None if release is None else read_release(os.fspath(release), group_size)
    context = Context(release=size, device=device, disk=speed, plugin=plugin)
    schemas = read_schemas(optional_path(crds), cluster)
    places = paths(files)
    mended = fix_files(places, context, schemas) if fix else []
    missing = [] if schemas else [f"schemas ({argument('crds')}, {argument('cluster')})"]
    missing += [] if context.release else [f"sizes ({argument('release')})"]
    return LintResult(
        findings=tuple(lint_files(places, context, schemas)),
        mended=tuple(mended),
        num_files=len(places),
        unchecked=tuple(missing),
    )
