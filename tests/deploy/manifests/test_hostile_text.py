"""Names that are commands or markup: every form says the same as with a plain name, or refuses."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from deploy.deploy_cases import write_kimi_config
from hostile import TEXTS
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.manifests.documents import Noted, parse, render
from moe4.deploy.manifests.options import FORMS, ON_A_CLUSTER
from moe4.errors import DeployError, Moe4Error
from moe4.escape import visible

SECRETS = ("--api-key-secret", "key", "--hf-secret", "hub", "--namespace", "team")
IMAGES = {"plain": (), "plugin": ("--image", "registry.example.com/moe4-vllm:0.1.0")}


def deploy(form: str, folder: Path | str, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["deploy", form, str(folder), "--trust-remote-code", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def release(parent: Path, name: str) -> Path:
    return write_kimi_config(parent / name.replace("/", "_"))


def read(form: str, text: str) -> Any:
    """Return what a form's reader makes of it."""
    if form == "podman":
        return [line for line in text.splitlines() if not line.startswith("#")]
    return read_unit(text) if form == "quadlet" else list(yaml.safe_load_all(text))


def read_unit(text: str) -> list[tuple[str, str, Any]]:
    """Read a unit as podman and systemd do: (section, key, value), specifiers and variables put in."""
    found: list[tuple[str, str, Any]] = []
    section, joined = "", ""
    for line in text.splitlines():
        if not joined and (not line.strip() or line.lstrip()[0] in "#;"):
            continue
        if not joined and re.fullmatch(r"\[\w+\]", line):
            section = line
            continue
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        key, equals, value = joined.partition("=")
        joined = ""
        assert equals, line
        assert not re.search(r"(?<!%)(%%)*%(?!%)", value), f"a specifier: {line}"
        value = value.replace("%%", "%")
        if section == "[Container]":  # it becomes ExecStart's
            assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", value), f"a variable: {line}"
            value = value.replace("$$", "$")
        split = key in ("Exec", "Environment", "PodmanArgs")
        found.append((section, key, shlex.split(value) if split else value))
    return found


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("form", FORMS)
def test_a_releases_name_changes_nothing_but_what_is_shown(form: str, image: str, tmp_path: Path) -> None:
    model = "pvc://models/k2" if form in ON_A_CLUSTER else "file:///srv/k2"
    arguments = ("--model", model, "--name", "k2", *SECRETS, *IMAGES[image])
    usual = deploy(form, release(tmp_path, "plain"), *arguments)
    expected = read(form, usual)
    for number, name in enumerate(TEXTS):
        folder = release(tmp_path, name)
        text = deploy(form, folder, *arguments)
        found = read(form, text)
        if form == "quadlet":
            shown = next(value for _, key, value in found if key == "Description")
            assert shown.startswith(visible(folder.name).replace("\\", r"\x5c"))
            found = [item for item in found if item[1] != "Description"]
            assert found == [item for item in expected if item[1] != "Description"]
        else:
            assert found == expected
        if form == "podman":
            run_podman(text, tmp_path / f"run-{number}")
        assert len(text.split("\n")) == len(usual.split("\n"))
        assert visible(text.replace("\n", "")) == text.replace("\n", "")
        assert visible(folder.name) in text.splitlines()[1 if form == "podman" else 0]


def run_podman(script: str, folder: Path) -> list[str]:
    """Run a script with a stand-in for podman; return what podman is told."""
    (folder / "bin").mkdir(parents=True)
    stand_in = folder / "bin" / "podman"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$TOLD"\n')
    stand_in.chmod(0o755)
    work = folder / "work"
    work.mkdir()
    environment = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "VLLM_API_KEY": "k",
        "TOLD": str(folder / "told"),
    }
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
        subprocess.run([shell, "-c", script], cwd=work, env=environment, check=True, capture_output=True)
        assert not list(work.iterdir())
    return (folder / "told").read_text().split("\0")[:-1]


@pytest.mark.parametrize("name", TEXTS)
def test_a_folder_that_is_mounted_is_one_word_or_refused(name: str, tmp_path: Path) -> None:
    folder = release(tmp_path / "release", name)
    path = str(folder.resolve())
    arguments = ("--name", "k2", "--api-key-secret", "key")
    if ":" in path or visible(path) != path:
        for form in ("podman", "quadlet", "compose"):
            with pytest.raises(DeployError, match="rename the folder") as caught:
                deploy(form, folder, *arguments)
            assert visible(str(caught.value)) == str(caught.value)
        return
    volume = f"{path}:/mnt/models:ro"
    assert volume in run_podman(deploy("podman", folder, *arguments), tmp_path)
    assert ("[Container]", "Volume", volume) in read_unit(deploy("quadlet", folder, *arguments))
    (service,) = yaml.safe_load(deploy("compose", folder, *arguments))["services"].values()
    assert [text.replace("$$", "$") for text in service["volumes"]] == [volume]
    left = re.sub(r"\$\$|\$\{VLLM_API_KEY:\?set it first\}", "", json.dumps(service))
    assert "$" not in left  # compose would put a variable there


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("--name", "{}"),
        ("--namespace", "{}"),
        ("--api-key-secret", "{}"),
        ("--hf-secret", "{}"),
        ("--image", "{}"),
        ("--image", "example.com/vllm:{}"),
        ("--image", "example.com/{}:v1"),
        ("--toleration", "{}"),
        ("--toleration", "key=value:{}"),
        ("--toleration", "key={}"),
        ("--node-selector", "{}"),
        ("--node-selector", "key={}"),
        ("--node-selector", "{}=value"),
        ("--model", "{}"),
        ("--model", "pvc://{}/k2"),
        ("--model", "pvc://models/{}"),
        ("--model", "oci://{}"),
        ("--model", "hf://{}"),
        ("--model", "hf://owner/{}"),
    ],
)
def test_options_are_as_strict_as_their_readers(option: str, pattern: str, text: str, tmp_path: Path) -> None:
    folder = release(tmp_path, "plain")
    arguments = ["--model", "pvc://models/k2"] if option != "--model" else []
    with pytest.raises(Moe4Error) as caught:
        deploy("kubernetes", folder, *arguments, f"{option}={pattern.format(text)}")
    assert len(str(visible(str(caught.value))).splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "text", "fits"),
    [
        ("--namespace", "team-1", True),
        ("--namespace", "1", True),
        ("--namespace", "Bad NS", False),
        ("--namespace", "a.b", False),
        ("--namespace", "a-", False),
        ("--namespace", "a" * 64, False),
        ("--hf-secret", "hub.token", True),
        ("--hf-secret", "hub_token", False),
        ("--hf-secret", "a..b", False),
        ("--api-key-secret", "a" * 254, False),
        ("--image", "localhost:5000/team/vllm:v1", True),
        ("--image", "vllm@sha256:" + "a" * 64, True),
        ("--image", "example.com/vllm:v1@sha256:" + "a" * 64, True),
        ("--image", "[::1]:5000/vllm:v1", True),
        ("--image", "vllm/vllm openai:v1", False),
        ("--image", "example.com/VLLM:v1", False),
        ("--image", "example.com//vllm:v1", False),
        ("--image", "vllm@sha256:abc", False),
        ("--image", "example.com/vllm:latest", False),
        ("--image", "example.com:5000/vllm", False),
        ("--toleration", "nvidia.com/gpu", True),
        ("--toleration", "nvidia.com/gpu:NoSchedule", True),
        ("--toleration", "team=:NoExecute", True),
        ("--toleration", "a=b=c:NoSchedule", False),
        ("--toleration", "k:Foo", False),
        ("--toleration", "k:", False),
        ("--toleration", ":NoSchedule", False),
        ("--toleration", "a/b/c", False),
        ("--toleration", "-k", False),
        ("--node-selector", "nvidia.com/gpu.product=NVIDIA-H200", True),
        ("--node-selector", "zone=", True),
        ("--node-selector", "zone", False),
        ("--node-selector", "=a", False),
        ("--node-selector", "zone=a b", False),
        ("--node-selector", "Zone_/x=a", False),
        ("--model", "pvc://my.claim/a/b_c-1.0", True),
        ("--model", "pvc://claim", True),
        ("--model", "pvc://Claim/a", False),
        ("--model", "pvc://claim/../b", False),
        ("--model", "pvc://claim/a//b", False),
        ("--model", "hf://moonshotai/Kimi-K2-Instruct", True),
        ("--model", "hf://moonshotai/Kimi--K2", False),
        ("--model", "hf://moonshotai/Kimi.git", False),
        ("--model", "hf://a/b/c", False),
        ("--model", "oci://example.com/models/k2:1.0", True),
        ("--model", "oci://example.com/models/k2", False),
    ],
)
def test_known_names(option: str, text: str, fits: bool, tmp_path: Path) -> None:
    folder = release(tmp_path, "plain")
    arguments = [] if option == "--model" else ["--model", "pvc://models/k2"]
    result = CliRunner().invoke(
        app, ["deploy", "kubernetes", str(folder), "--trust-remote-code", *arguments, f"{option}={text}"]
    )
    if fits:
        assert result.exception is None, result.exception
        objects = list(yaml.safe_load_all(result.stdout))
        assert text.partition("=")[2].partition(":")[0] in json.dumps(objects)
    else:
        assert isinstance(result.exception, Moe4Error)
        assert text in str(result.exception)


def test_a_selector_is_given_once(tmp_path: Path) -> None:
    arguments = ("--model", "pvc://a", "--node-selector", "zone=a", "--node-selector", "zone=b")
    with pytest.raises(DeployError, match="zone twice"):
        deploy("kubernetes", release(tmp_path, "plain"), *arguments)


@pytest.mark.parametrize("text", TEXTS)
def test_a_dashboards_name_is_checked(text: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="--name"):
        deploy("dashboard", release(tmp_path, "plain"), f"--name={text}", "-o", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_yaml_gives_every_text_back() -> None:
    odd = [
        "12:30",
        "0x10",
        "1_000",
        "2024-01-01",
        "y",
        "=",
        "<<",
        ".inf",
        "~",
        "",
        " a",
        "a ",
        "x\ny\n",
        "# ",
    ]
    texts = [*(text for text in TEXTS if "\udcff" not in text), *odd]
    document = {
        "list": [Noted(text, f"why {text}") for text in texts],
        "map": {f"k{n}": t for n, t in enumerate(texts)},
    }
    written = render([document], texts)
    for found in (yaml.safe_load(written), parse(written, "it")[0]):
        assert found == {"list": texts, "map": document["map"]}
    values = re.sub(r"#.*", "", written)
    assert values.isascii()


def test_a_finding_is_two_lines(tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    container = {"name": "vllm", "image": "vllm/vllm-openai\n0 errors\x1b[2J", "args": ["vllm", "serve", "x"]}
    pod["spec"] = {"containers": [container]}  # type: ignore[assignment]
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(pod))
    result = CliRunner().invoke(app, ["lint", str(file)])
    assert r"vllm-openai\n0 errors\x1b[2J" in result.stdout
    assert "\n0 errors" not in result.stdout and "\x1b" not in result.stdout


def test_a_files_name_is_a_reference_in_sarif(tmp_path: Path) -> None:
    file = tmp_path / "a b#c?d%20\nü.yaml"
    file.write_text("kind: Pod\nspec: [")
    result = CliRunner().invoke(app, ["lint", str(file), "--sarif"])
    place = json.loads(result.stdout)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert unquote(urlsplit(place["artifactLocation"]["uri"]).path) == str(file)
    assert place["artifactLocation"]["uri"].endswith("/a%20b%23c%3Fd%2520%0A%C3%BC.yaml")


def test_the_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    folder = release(tmp_path, "\x1b]0;title\x07[red]\n\u202eK2")
    program = "import sys; from moe4.cli.main import main; main()"
    for arguments, code in ((["fit", str(folder)], 0), (["deploy", "helm", str(folder)], 2)):
        command = [sys.executable, "-c", program, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        assert ran.returncode == code, ran.stderr
        shown = ran.stdout + ran.stderr
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
        if code == 0:
            assert r"\x1b]0;title\x07[red]\n\u202eK2: " in shown
