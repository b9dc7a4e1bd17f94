"""Helm charts and kustomizations, rendered by `helm`, `kustomize` or `kubectl` where they are installed.

Nothing is downloaded meanwhile: a chart or kustomization that needs the network is named as not read.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.unread import RENDER_HELM, RENDER_KUSTOMIZE, unread
from moe4.errors import DeployError
from moe4.files.regular import read_bytes

CHART = "Chart.yaml"
KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
VALUES = re.compile(r"(.*[-_.])?values([-_.].*)?\.ya?ml", re.I)
ARCHIVE = ".tgz"
OBJECT = re.compile(r"^(apiVersion|kind|services)\s*:", re.MULTILINE)
SOURCE = re.compile(r"^# Source: [^/\n]+/(.+)$", re.MULTILINE)
PREFIX = re.compile(r'^(.*?\] "command failed" err=["<]|.*?Error: )', re.DOTALL)  # kubectl's log and helm's
MAX_SHOWN = 300
BETWEEN = re.compile(r"^---[ \t]*$", re.MULTILINE)
RELEASE_NAME = "moe4-lint"
SECONDS = 60
MAX_BYTES = 16 << 20
OFFLINE = {
    "GIT_ALLOW_PROTOCOL": "file",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
}


@dataclass(kw_only=True, slots=True)
class Rendering:
    """What one command renders: a chart (a folder or an archive) with files of values, or a kustomization.

    file: where findings about the whole are shown.
    """

    root: Path
    file: Path
    is_chart: bool
    values: list[Path] = field(default_factory=list)

    def command(self) -> list[str] | None:
        """Return the command that renders it; None if its program is not installed."""
        root = str(self.root.absolute())  # no name can be taken for an option
        if self.is_chart:
            values = [f"--values={file}" for file in self.values]
            return ["helm", "template", RELEASE_NAME, root, *values] if _is_there("helm") else None
        if _is_there("kustomize"):
            return ["kustomize", "build", root]
        return ["kubectl", "kustomize", root] if _is_there("kubectl") else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedText:
    """Manifests of one file of a chart, or of a kustomization."""

    file: Path
    text: str


def sort_files(files: Sequence[Path]) -> tuple[list[Path], list[Rendering]]:
    """Return the files to read as they are, and what has to be rendered, each once.

    A folder is a chart or a kustomization; so is each file that is a part of one. Files of values go with the
    chart they lie in, or with every chart that is given. Raises DeployError for any other folder.
    """
    plain: list[Path] = []
    found: dict[Path, Rendering] = {}
    for file in files:
        rendering = _rendering(file) if file.exists() else None
        if rendering is None:
            if file.is_dir():
                raise DeployError(
                    f"{file} is a folder without {CHART} or {KUSTOMIZATIONS[0]}: give the files in it"
                )
            plain.append(file)
        else:
            kept = found.setdefault(rendering.root, rendering)
            kept.values += [value for value in rendering.values if value not in kept.values]
    charts = [rendering for rendering in found.values() if rendering.is_chart]
    values = [file for file in plain if _holds_values(file)] if charts else []
    for chart in charts:
        chart.values += values
    return [file for file in plain if file not in values], list(found.values())


def _holds_values(file: Path) -> bool:
    """Say whether a file beside a chart holds values: YAML that is neither an object nor a compose file."""
    if file.suffix not in (".yaml", ".yml") or not file.is_file():
        return False
    return OBJECT.search(read_bytes(file, MAX_BYTES).decode(errors="replace")) is None


def _rendering(file: Path) -> Rendering | None:
    """Return what a file is a part of; None if it stands alone."""
    if file.is_dir():
        if (file / CHART).is_file():
            return Rendering(root=file, file=file / CHART, is_chart=True)
        inside = next((file / name for name in KUSTOMIZATIONS if (file / name).is_file()), None)
        return None if inside is None else Rendering(root=file, file=inside, is_chart=False)
    if file.name in KUSTOMIZATIONS:
        return Rendering(root=file.parent, file=file, is_chart=False)
    if file.name == CHART or file.suffix == ARCHIVE:
        root = file.parent if file.name == CHART else file
        return Rendering(root=root, file=file, is_chart=True)
    if VALUES.fullmatch(file.name) and (file.parent / CHART).is_file():
        own = file.name in ("values.yaml", "values.yml")  # helm reads these by itself
        return Rendering(
            root=file.parent, file=file.parent / CHART, is_chart=True, values=[] if own else [file]
        )
    for above in file.parents:
        if above.name == "templates" and (above.parent / CHART).is_file():
            return Rendering(root=above.parent, file=above.parent / CHART, is_chart=True)
    return None


def render(rendering: Rendering) -> tuple[list[RenderedText], Finding | None]:
    """Return the manifests that it renders to, or the finding that it was not read."""
    what = "a Helm chart" if rendering.is_chart else "a kustomization"
    fix = RENDER_HELM if rendering.is_chart else RENDER_KUSTOMIZE
    command = rendering.command()
    if command is None:
        program = "helm is" if rendering.is_chart else "kustomize and kubectl are"
        return [], unread(rendering.file, f"{what}, and {program} not installed", f"install it, or {fix}")
    text, reason = _run(command)
    if reason is None and not text.strip():
        reason = "it renders to nothing"
    if reason is not None:
        shown = " ".join(command[:2])
        mend = f"give its values files too, or {fix}" if rendering.is_chart else fix
        return [], unread(rendering.file, f"{what} that `{shown}` cannot render: {reason}", mend)
    return list(_split(rendering, text)), None


def _split(rendering: Rendering, text: str) -> Iterator[RenderedText]:
    """Yield what helm prints, by the template that each part comes from; kustomize's output is one text."""
    if not rendering.is_chart:
        yield RenderedText(file=rendering.file, text=text)
        return
    texts: dict[Path, list[str]] = {}
    for part in BETWEEN.split(text):
        named = SOURCE.search(part)
        inside = rendering.root / named[1].strip() if named and rendering.root.is_dir() else rendering.file
        texts.setdefault(inside, []).append(part)
    for file, parts in texts.items():
        yield RenderedText(file=file, text="---\n".join(parts))


def _run(command: list[str]) -> tuple[str, str | None]:
    """Return what a command prints, and why that cannot be used; None if it can."""
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **OFFLINE},
            )
        except OSError as error:
            return "", f"{command[0]} does not start: {error.strerror}"
        timer = Timer(SECONDS, child.kill)
        timer.start()
        with child:
            assert child.stdout is not None
            text = child.stdout.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                child.kill()
        in_time = timer.is_alive()
        timer.cancel()
        if len(text) > MAX_BYTES:
            return "", f"it renders to more than {MAX_BYTES >> 20} MiB"
        if not in_time:
            return "", f"no answer within {SECONDS} s"
        if child.returncode:
            errors.seek(0)
            return "", _reason(errors.read(MAX_BYTES).decode(errors="replace"), child.returncode)
    try:
        return text.decode(), None
    except UnicodeDecodeError:
        return "", "it renders to something that is not UTF-8 text"


def _reason(said: str, status: int) -> str:
    """Return the first of a program's complaints as one line."""
    first = said.strip().partition("\n\n")[0]
    line = " ".join(PREFIX.sub("", first).split())
    return line[:MAX_SHOWN] if line else f"exit status {status}"


def _is_there(program: str) -> bool:
    return shutil.which(program) is not None
