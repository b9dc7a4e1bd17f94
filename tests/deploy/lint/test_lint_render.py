"""Charts and kustomizations are rendered where a program does it, and named as not read elsewhere."""

import shutil
import sys
from pathlib import Path

import pytest
from deploy.lint.test_lint_knows import POD, lint
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.lint import render

# As helm 4.1.4 behaves: the order of its arguments, what it prints before each template, how it complains.
HELM = """\
#!{python}
import re, sys, pathlib, yaml
name, given = sys.argv[2], sys.argv[3]
assert sys.argv[1] == "template" and all(word.startswith("--values=") for word in sys.argv[4:]), sys.argv
chart = pathlib.Path(given)
if not (chart / "Chart.yaml").is_file():
    sys.exit("Error: non-absolute URLs should be in form of repo_name/path_to_chart, got: " + given)
title = yaml.safe_load((chart / "Chart.yaml").read_text())["name"]
values = yaml.safe_load((chart / "values.yaml").read_text())
for word in sys.argv[4:]:
    values |= yaml.safe_load(pathlib.Path(word.partition("=")[2]).read_text())
def put_in(found):
    if found[1] not in values:
        sys.exit(f"Error: execution error at ({{title}}/templates/pod.yaml:9:1): give {{found[1]}}"
                 "\\n\\nUse --debug flag to render out invalid YAML")
    return str(values[found[1]])
for file in sorted((chart / "templates").glob("*.yaml")):
    text = re.sub(r"{{{{ (?:required \\S+ )?\\.Values\\.(\\w+) }}}}", put_in, file.read_text())
    print("---\\n# Source: " + title + "/templates/" + file.name)
    print(text)
"""
KUSTOMIZE = """\
#!{python}
import sys, pathlib, yaml
assert sys.argv[1] == "build" and len(sys.argv) == 3, sys.argv
folder = pathlib.Path(sys.argv[2])
texts = []
for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
    if not (folder / name).is_file():
        sys.exit(f"Error: accumulating resources: accumulation err='{{name}}': no such file or directory")
    texts.append((folder / name).read_text())
print("---\\n".join(texts))
"""
TEXTS = {"helm": HELM, "kustomize": KUSTOMIZE}


@pytest.fixture(params=["stand-in", "installed"])
def helm(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide(request.param, "helm", tmp_path, monkeypatch)


@pytest.fixture(params=["stand-in", "installed", "kubectl"])
def kustomize(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "kubectl":
        provide("installed", "kubectl", tmp_path, monkeypatch)
    else:
        provide(request.param, "kustomize", tmp_path, monkeypatch)


def provide(which: str, program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program alone on PATH: a stand-in, or the installed one."""
    (folder / "bin").mkdir()
    place = folder / "bin" / program
    found = shutil.which(program)
    if which == "stand-in":
        place.write_text(TEXTS[program].format(python=sys.executable))
        place.chmod(0o755)
    elif found is None:
        pytest.skip(f"{program} is not installed")
    else:
        place.symlink_to(found)
    monkeypatch.setenv("PATH", str(folder / "bin"))


def write_chart(folder: Path, values: str = "tp: 8\ntag: v0.32.0\n") -> Path:
    """Write a chart of one pod and return its folder, whose name is not the chart's."""
    chart = folder / "a chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: k2\nversion: 0.1.0\n")
    (chart / "values.yaml").write_text(values)
    pod = POD.replace("size=8", "size={{ .Values.tp }}").replace("v0.32.0", '{{ required "x" .Values.tag }}')
    (chart / "templates" / "pod.yaml").write_text(pod)
    return chart


FOUR = "spec: {replicas: 1}\ntp: 4\n"


@pytest.mark.usefixtures("helm")
def test_a_chart_is_judged_as_it_renders(tmp_path: Path) -> None:
    chart = write_chart(tmp_path)
    assert lint(chart) == (0, set())
    for name in ("four.yaml", "values-four.yaml"):
        (tmp_path / name).write_text(FOUR)
        assert lint(chart, tmp_path / name) == (1, {("parallel-mismatch", "error")})
    (chart / "values-four.yaml").write_text(FOUR)
    assert lint(chart / "values-four.yaml") == (1, {("parallel-mismatch", "error")})


@pytest.mark.usefixtures("helm")
@pytest.mark.parametrize("part", ["", "Chart.yaml", "values.yaml", "templates/pod.yaml"])
def test_any_part_of_a_chart_is_the_chart(tmp_path: Path, part: str) -> None:
    chart = write_chart(tmp_path, "tp: 4\ntag: v0.32.0\n")
    result = CliRunner().invoke(app, ["lint", str(chart / part), "--fix"])
    assert result.exit_code == 1
    assert (
        f"{chart}/templates/pod.yaml:1:1: error parallel-mismatch (spec.containers[0].args)" in result.stdout
    )


@pytest.mark.usefixtures("helm")
def test_what_helm_says_is_passed_on(tmp_path: Path) -> None:
    chart = write_chart(tmp_path, "tp: 8\n")
    (chart / "templates" / "pod.yaml").write_text('{{ required "tag" .Values.tag }}\n')
    result = CliRunner().invoke(app, ["lint", str(chart)])
    assert result.exit_code == 3
    assert f"{chart}/Chart.yaml:1:1: unread not-read" in result.stdout
    assert "k2/templates/pod.yaml" in result.stdout and "--debug" not in result.stdout


@pytest.mark.usefixtures("kustomize")
def test_a_kustomization_is_judged_as_it_renders(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text("resources: [pod.yaml]\n")
    (folder / "pod.yaml").write_text(POD)
    assert lint(folder) == (0, set())
    (folder / "pod.yaml").write_text(POD.replace('"8"', '"4"'))
    for given in (folder, folder / "kustomization.yaml"):
        assert lint(given) == (1, {("parallel-mismatch", "error")})
    (folder / "kustomization.yaml").write_text("resources: [gone.yaml]\n")
    assert lint(folder) == (3, {("not-read", "unread")})


def test_without_a_program_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = write_chart(tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: []\n")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for given in (chart, chart / "templates" / "pod.yaml", tmp_path, tmp_path / "kustomization.yaml"):
        assert lint(given) == (3, {("not-read", "unread")})


BAD = {
    "nothing": ("", "it renders to nothing"),
    "noise": ("head -c 20000000 /dev/zero", "more than 16 MiB"),
    "no text": (r"printf '\377'", "not UTF-8"),
    "a silent end": ("exit 3", "exit status 3"),
    "no YAML": ("echo 'a: ['", "not YAML"),
    "never": ("exec sleep 60", "no answer"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_program_that_misbehaves(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, expected = BAD[kind]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "helm").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bin" / "helm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(render, "SECONDS", 2)
    result = CliRunner().invoke(app, ["lint", str(write_chart(tmp_path))])
    assert result.exit_code in (1, 3) and expected in result.stdout


def test_a_folder_of_neither_kind(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lint", str(tmp_path)])
    assert "give the files in it" in str(result.exception)
