"""What the forms start, as vLLM's own parser takes it, and the files as shells, systemd and compose do."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from deploy.deploy_cases import write_kimi_config
from deploy.manifests.merged_llmd import merged
from model_fixtures import write_random_model, write_rounded_release
from shared_data import find_shared
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.lint.checks.needs import Context
from moe4.deploy.lint.run import lint_files
from moe4.deploy.lint.schema import Schemas, read_schemas

PVC, OCI = ("--model", "pvc://models/k2"), ("--model", "oci://registry.example.com/k2:1.0")
HUB, FOLDER = ("--model", "hf://moonshotai/Kimi-K2-Instruct"), ("--model", "file:///srv/k 2")
CPU = ("--engine", "cpu", "--memory", "8")
OUR_IMAGE = ("--image", "registry.example.com/moe4-vllm:0.1.0", "--api-key-secret", "key")
CPU_IMAGE = ("--image", "registry.example.com/moe4-cpu:0.1.0")
SPREAD = ("--gpu", "h100", "--data-parallel", "16", "--expert-parallel")
# By name: the form, its options, and the GPUs that its vLLM takes in all, 0 on a CPU.
FORMS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "podman": ("podman", FOLDER, 8),
    "podman, hub": ("podman", (*HUB, "--hf-secret", "hub", "--gpu", "b200"), 4),
    "podman, Red Hat": ("podman", (*FOLDER, "--engine", "rhaiis"), 8),
    "podman, CPU": ("podman", CPU, 0),
    "quadlet": ("quadlet", (*FOLDER, "--api-key-secret", "key"), 8),
    "quadlet, plugin": ("quadlet", (*FOLDER, *OUR_IMAGE), 8),
    "quadlet, hub": ("quadlet", HUB, 8),
    "quadlet, CPU": ("quadlet", CPU, 0),
    "compose": ("compose", FOLDER, 8),
    "compose, key": ("compose", (*FOLDER, "--api-key-secret", "key"), 8),
    "compose, CPU": ("compose", CPU, 0),
    "kserve": ("kserve", PVC, 8),
    "kserve, image": ("kserve", (*OCI, "--openshift", "--engine", "rhaiis"), 8),
    "kserve, hub": ("kserve", (*HUB, "--hf-secret", "hub"), 8),
    "kserve, two machines": ("kserve", (*PVC, "--gpu", "h100", "--gpus", "16"), 16),
    "kserve, two, plugin": ("kserve", (*OCI, "--gpu", "h100", "--gpus", "16", *OUR_IMAGE), 16),
    "llmd": ("llmd", PVC, 8),
    "llmd, hub": ("llmd", (*HUB, "--hf-secret", "hub", "--namespace", "llm"), 8),
    "llmd, OpenShift": ("llmd", (*PVC, "--openshift", "--max-model-len", "32768"), 8),
    "llmd, two machines": ("llmd", (*PVC, *SPREAD), 16),
    "kubernetes": ("kubernetes", (*PVC, "--port", "9000"), 8),
    "kubernetes, hub": ("kubernetes", (*HUB, *OUR_IMAGE), 8),
    "kubernetes, CPU": ("kubernetes", (*PVC, *CPU, *CPU_IMAGE), 0),
    "one group of pods": ("leaderworkerset", PVC, 8),
    "three machines": ("leaderworkerset", (*PVC, "--gpu", "h100", "--gpus", "24"), 24),
}
SUFFIXES = {"podman": ".sh", "quadlet": ".container"}
# What the cluster sets in a pod.
CLUSTER = {
    **{"LWS_GROUP_SIZE": "3", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "k2-0.k2.llm"},
    **{"TENSOR_PARALLEL_SIZE": "8", "PIPELINE_PARALLEL_SIZE": "2", "POD_IP": "10.0.0.1"},
    **{"HEAD_SVC": "k2-head", "POD_NAMESPACE": "llm"},
}
Command = list[str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    write_random_model(folder / "source")
    release = write_rounded_release(folder / "source", folder / "release")
    return {"GPU": write_kimi_config(folder / "k2"), "CPU": release}


@pytest.fixture(scope="module")
def schemas() -> Schemas | None:
    """Return KServe's CRDs where they are; the rules are tested without them too."""
    folder = find_shared("schemas", "kserve")
    return read_schemas(folder, False) if folder else None


@pytest.fixture(scope="module", params=FORMS)
def form(
    request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    """Return a deployment: its name in FORMS, its form and the file."""
    name: str = request.param
    form, options, num_gpus = FORMS[name]
    file = tmp_path_factory.mktemp("m") / f"k2{SUFFIXES.get(form, '.yaml')}"
    usual = ("--gpu", "h200") if num_gpus and "--gpu" not in options else ()
    trust = ("--trust-remote-code",) if num_gpus else ()
    words = ["deploy", form, str(folders["GPU" if num_gpus else "CPU"]), *usual, *trust, *options]
    result = CliRunner().invoke(app, [*words, "--name", "k2", "-o", str(file)])
    assert result.exit_code == 0, result.exception
    return name, form, file


def test_vllm_takes_every_command(form: tuple[str, str, Path], tmp_path: Path) -> None:
    name, kind, file = form
    num_gpus = FORMS[name][2]
    commands = list(read_commands(kind, file, tmp_path))
    assert commands
    for command in commands:
        program, verb, *words = command
        assert (program.rpartition("/")[2], verb) == ("vllm" if num_gpus else "moe4", "serve")
        if num_gpus:
            check_vllm(words, num_gpus)
        else:
            group: Any = typer.main.get_command(app)
            group.commands["serve"].make_context("serve", words)  # raises where the command would


def check_vllm(words: Command, num_gpus: int) -> None:
    """Have vLLM's own parser read its options, and its own check judge them together."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    options.model_tag = options.model_tag or options.model
    validate_parsed_serve_args(options)
    sizes = (options.tensor_parallel_size, options.pipeline_parallel_size, options.data_parallel_size)
    assert sizes[0] * sizes[1] * sizes[2] == num_gpus
    assert options.tool_call_parser == "kimi_k2" and options.enable_auto_tool_choice
    assert options.max_model_len and options.trust_remote_code


def test_readers_take_every_file(
    form: tuple[str, str, Path], schemas: Schemas | None, tmp_path: Path
) -> None:
    name, kind, file = form
    if kind == "podman":
        subprocess.run(["sh", "-n", str(file)], check=True)
    elif kind == "quadlet":
        verify_unit(file, tmp_path)
    elif kind == "compose":
        read_compose(file, tmp_path)
    else:
        found = lint_files([file], Context(plugin=not FORMS[name][2]), schemas)
        assert {item.rule for item in found} <= {"not-judged"}, [item.describe() for item in found]


@pytest.mark.parametrize("no_root", [True, False])
@pytest.mark.parametrize("name", [name for name, (form, _, _) in FORMS.items() if form == "llmd"])
def test_an_llm_service_is_whole_once_merged(
    name: str, no_root: bool, folders: dict[str, Path], schemas: Schemas | None, tmp_path: Path
) -> None:
    _, options, _ = FORMS[name]
    gpu = () if "--gpu" in options else ("--gpu", "h200")
    words = ["deploy", "llmd", str(folders["GPU"]), *gpu, "--trust-remote-code", *options, "--name", "k2"]
    text = CliRunner().invoke(app, words).stdout
    service = next(item for item in yaml.safe_load_all(text) if item["kind"] == "LLMInferenceService")
    for part, pod in merged(service, no_root).items():
        (container,) = pod["containers"]
        context = container["securityContext"]
        root = context["runAsNonRoot"] and context.get("runAsUser", 0) == 0
        assert not root or "--openshift" in options  # whose constraints give a user
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"]["drop"] == ["ALL"]
        names = [volume["name"] for volume in pod["volumes"]]
        assert len(set(names)) == len(names)
        assert {mount["name"] for mount in container["volumeMounts"]} == set(names)
        (shm,) = [volume for volume in pod["volumes"] if volume["name"] == "dshm"]
        assert shm["emptyDir"]["medium"] == "Memory" and shm["emptyDir"]["sizeLimit"] == "16Gi"
        variables = [item["name"] for item in container["env"]]
        assert len(set(variables)) == len(variables)
        assert {"HOME", "HF_HUB_CACHE", "VLLM_ADDITIONAL_ARGS"} <= set(variables)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert set(container[probe]) & {"httpGet", "exec", "tcpSocket", "grpc"} == {"httpGet"}, part
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] > 3600
        assert container["image"].startswith("docker.io/vllm/vllm-openai:v")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    service["spec"].update(merged(service, no_root))
    (tmp_path / "k2.json").write_text(json.dumps(service))
    found = lint_files([tmp_path / "k2.json"], Context(), schemas)
    assert not [item.describe() for item in found if item.rule.startswith("schema")]


def read_commands(kind: str, file: Path, folder: Path) -> Iterator[Command]:
    """Yield the command lines of the servers that a deployment starts, as the programs get them."""
    text = file.read_text()
    if kind == "podman":
        yield podman_command(text, folder)
    elif kind == "quadlet":
        values = dict(re.findall(r"^(Entrypoint|Exec)=(.*)$", text, re.MULTILINE))
        words = shlex.split(f"{values['Entrypoint']} {values['Exec']}")
        yield [word.replace("%%", "%").replace("$$", "$") for word in words]
    elif kind == "compose":
        (service,) = yaml.safe_load(text)["services"].values()
        yield [word.replace("$$", "$") for word in (*service["entrypoint"], *service["command"])]
    else:
        for document in yaml.safe_load_all(text):
            for container in containers(document):
                yield container_command(container, folder)


def podman_command(script: str, folder: Path) -> Command:
    """Return what runs in the container of a script, by a podman that prints its words."""
    write_program(folder / "podman")
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "VLLM_API_KEY": "k", "HF_TOKEN": "t"}
    words = run(["sh", "-c", script], environment)
    image = next(
        place
        for place, word in enumerate(words)
        if re.search(r":(v?[0-9])", word)
        and "/" in word
        and not word.startswith(("-", "/", "127."))
        and words[place - 1] != "--volume"
    )
    return [words[words.index("--entrypoint") + 1], *words[image + 1 :]]


def containers(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the containers of an object that start a server."""
    spec = document.get("spec", {})
    if document["kind"] == "LLMInferenceService":
        pods = list(merged(document, True).values())
    elif document["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        pods = [group[key]["spec"] for key in ("leaderTemplate", "workerTemplate") if key in group]
    elif document["kind"] == "Deployment":
        pods = [spec["template"]["spec"]]
    elif document["kind"] == "ServingRuntime":
        pods = [spec, *([spec["workerSpec"]] if "workerSpec" in spec else [])]
    else:
        pods = []
    for pod in pods:
        yield from pod["containers"]


def container_command(container: dict[str, Any], folder: Path) -> Command:
    """Return a container's command: Kubernetes puts variables in, and a shell may run it."""
    given = {item["name"]: item.get("value", "secret") for item in container.get("env", [])}
    variables = {**CLUSTER, **{name: fill(value, CLUSTER) for name, value in given.items()}}
    words = [fill(word, variables) for word in (*container["command"], *container.get("args", []))]
    if words[0].rpartition("/")[2] != "bash":
        return words
    write_program(folder / "vllm")
    return ["vllm", *run(words, {**variables, "PATH": f"{folder}:/usr/bin:/bin"})]


def fill(word: str, variables: dict[str, str]) -> str:
    """Put $(NAME) in as Kubernetes does: $$ is a $, and unknown names stay."""
    return re.sub(
        r"\$\$|\$\((\w+)\)", lambda found: variables.get(found[1], found[0]) if found[1] else "$", word
    )


def write_program(file: Path) -> None:
    """Write a program that prints its words, each on a line."""
    file.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    file.chmod(0o755)


def run(words: Command, environment: dict[str, str]) -> Command:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def verify_unit(file: Path, folder: Path) -> None:
    """Have systemd read the sections that are its own; podman's generator makes the rest from [Container]."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    kept = re.sub(r"^\[Container\]\n.*?(?=^\[)", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    unit = folder / "k2.service"
    unit.write_text(kept.replace("[Service]\n", "[Service]\nExecStart=/bin/true\n"))
    command = ["systemd-analyze", "verify", "--user", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


def read_compose(file: Path, folder: Path) -> None:
    pytest.importorskip(
        "podman_compose", reason="podman-compose is not installed: pip install podman-compose"
    )
    (folder / "podman").write_text("#!/bin/sh\necho podman version 5.4.0\n")
    (folder / "podman").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "VLLM_API_KEY": "k", "HF_TOKEN": "t"}
    command = [sys.executable, "-m", "podman_compose", "-f", str(file), "config"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(yaml.safe_load(done.stdout)["services"]) == ["k2"]
