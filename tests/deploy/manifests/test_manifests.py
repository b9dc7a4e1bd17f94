"""Every form that moe4 deploy writes passes schema and lint; what cannot work is refused."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.deploy_cases import K2_TINY, REPOSITORY, write_kimi_config
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from model_fixtures import write_random_model, write_rounded_release
from shared_data import find_shared, shared_path
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.lint.checks.needs import Context
from moe4.deploy.lint.run import lint_files
from moe4.deploy.lint.schema import Schemas, read_schemas
from moe4.deploy.manifests.images import PROGRAMS
from moe4.deploy.manifests.options import (
    CHECKS_ANSWERS,
    ENGINES,
    FORMS,
    ON_A_CLUSTER,
    DeployOptions,
    Engine,
    parse_source,
)
from moe4.deploy.manifests.write import write_deployment
from moe4.deploy.sizing.choose import Wanted, pick
from moe4.deploy.sizing.release_size import ReleaseSize, read_release
from moe4.errors import DeployError, Moe4Error
from moe4.probe.ask import script_text

SUFFIXES = {"podman": ".sh", "quadlet": ".container"}


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> ReleaseSize:
    return read_release(str(write_kimi_config(tmp_path_factory.mktemp("kimi") / "Kimi-K2-Instruct")))


@pytest.fixture(scope="module")
def schemas() -> Schemas | None:
    """Return KServe's CRDs where they are; the rules are tested without them too."""
    folder = find_shared("schemas", "kserve")
    return read_schemas(folder, False) if folder else None


SOURCES = {
    "pvc": "pvc://models/kimi/k2",
    "oci": "oci://registry.example.com/models/kimi-k2:1.0",
    "hf": "hf://moonshotai/Kimi-K2-Instruct",
    "file": "file:///srv/models/kimi k2",
}
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)


@st.composite
def deployments(draw: st.DrawFn) -> tuple[dict[str, Any], Wanted]:
    """Draw any combination of options, most of which make sense."""
    form, engine = draw(st.sampled_from(FORMS)), draw(st.sampled_from(ENGINES))
    usual = ["pvc", "oci", "hf"] if form in ON_A_CLUSTER else ["file", "hf"]
    options: dict[str, Any] = {
        "form": form,
        "engine": engine,
        "name": draw(NAMES),
        "source": parse_source(SOURCES[draw(st.sampled_from(usual))]),
        "image": "registry.example.com/moe4-cpu:0.1.0" if engine == "cpu" else None,
        "namespace": draw(st.none() | NAMES),
        "port": 8000 if form == "llmd" else draw(st.integers(1024, 65535)),
        "api_key_secret": draw(st.none() | NAMES),
        "hf_secret": draw(st.none() | NAMES),
        "tolerations": tuple(
            draw(st.sets(st.sampled_from(["nvidia.com/gpu", "team=a:NoSchedule", "x:NoExecute"])))
        ),
        "node_selector": draw(
            st.dictionaries(st.sampled_from(["zone", "example.com/pool"]), NAMES, max_size=2)
        ),
        "openshift": draw(st.booleans()),
        "trust_remote_code": True,
        "disk": draw(st.floats(0.05e9, 20e9)),
    }
    length = draw(st.none() | st.integers(1, 131_072))
    concurrency = draw(st.integers(1, 4))
    if engine == "cpu":
        memory = draw(st.sampled_from([600.0, 768.0, 1536.0]))
        return options, Wanted(on_cpu=True, memory=memory, max_model_len=length, concurrency=concurrency)
    gpu = draw(st.sampled_from(["l40s", "a100", "h100", "h200", "b200"]))
    if form == "llmd" and draw(st.booleans()):
        wanted = Wanted(gpu=gpu, data_parallel=16, expert_parallel=True, max_model_len=length)
    else:
        gpus = draw(st.sampled_from([None, 4, 8, 16, 24]))
        wanted = Wanted(gpu=gpu, gpus=gpus, max_model_len=length, concurrency=concurrency)
    return options, wanted


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(deployment=deployments())
def test_every_combination_is_clean_or_refused(
    kimi: ReleaseSize,
    schemas: Schemas | None,
    tmp_path_factory: pytest.TempPathFactory,
    deployment: tuple[dict[str, Any], Wanted],
) -> None:
    options, wanted = deployment
    try:
        fit = pick(kimi, wanted)
        text = write_deployment(DeployOptions(**options), kimi, fit)
    except DeployError as error:
        assert "\n" not in str(error)
        assume(False)
    file = tmp_path_factory.mktemp("m") / f"deployment{SUFFIXES.get(options['form'], '.yaml')}"
    file.write_text(text)
    context = Context(release=kimi, device=fit.device, disk=options["disk"])
    findings = [item for item in lint_files([file], context, schemas) if item.level != "note"]
    assert not findings, "\n".join(finding.describe() for finding in findings) + "\n" + text
    if options["form"] != "quadlet":
        assert len(text) == len(text.encode("ascii"))


@pytest.mark.parametrize("form", ["podman", "quadlet", "compose"])
def test_a_server_without_gpus_is_given_none(kimi: ReleaseSize, form: Any) -> None:
    wanted = Wanted(on_cpu=True, memory=768.0)
    source, image = parse_source(SOURCES["file"]), "registry.example.com/moe4-cpu:0.1.0"
    options = DeployOptions(
        form=form, engine="cpu", name="k2", source=source, image=image, trust_remote_code=True
    )
    text = write_deployment(options, kimi, pick(kimi, wanted))
    assert not any(word in text for word in ("nvidia", "gpu", "GPU", "SecurityLabel", "label=disable"))


def deploy(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["deploy", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_kimi_config(tmp_path_factory.mktemp("kimi") / "kimi-k2"))


@pytest.mark.parametrize("form", ["kserve", "llmd"])
def test_kserve_objects_fit_their_schemas(form: str, folder: str, tmp_path: Path) -> None:
    crds = shared_path("schemas", "kserve")
    out = tmp_path / "out.yaml"
    result = deploy(form, folder, "--model", SOURCES["pvc"], "--trust-remote-code", "-o", str(out))
    assert result.exit_code == 0, result.exception
    linted = CliRunner().invoke(app, ["lint", str(out), "--crds", str(crds), "--release", folder])
    assert linted.exit_code == 0, linted.output
    broken = (
        out.read_text().replace("replicas: 1", "replicas: one").replace("minReplicas: 1", "minReplicas: one")
    )
    out.write_text(broken.replace("resources:", "resource:"))
    rules = json.loads(CliRunner().invoke(app, ["lint", str(out), "--crds", str(crds), "--json"]).stdout)
    assert {"schema", "schema-unknown-field"} <= {item["rule"] for item in rules}


@pytest.mark.parametrize("source", ["pvc", "oci", "hf"])
def test_plain_pods_fit_the_pod_that_the_crds_hold(
    source: str, folder: str, tmp_path: Path, schemas: Schemas | None
) -> None:
    """Kubernetes' own schema of a Deployment is not here; an LLMInferenceService's template is a pod's."""
    shared_path("schemas", "kserve")
    arguments = ["--trust-remote-code", "--hf-secret", "a", "--toleration", "b=c:NoSchedule"]
    arguments += ["--api-key-secret", "d", "--node-selector", "e=f"]
    result = deploy("kubernetes", folder, "--model", SOURCES[source], *arguments)
    deployment = next(item for item in yaml.safe_load_all(result.stdout) if item["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    service = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "pod"},
        "spec": {"model": {"uri": "pvc://a", "name": "a"}, "template": pod},
    }
    (tmp_path / "pod.json").write_text(json.dumps(service))
    found = lint_files([tmp_path / "pod.json"], Context(), schemas)
    assert not [item.describe() for item in found if item.rule.startswith("schema")]
    pod["containers"][0]["resource"] = pod["containers"][0].pop("resources")
    (tmp_path / "pod.json").write_text(json.dumps(service))
    found = lint_files([tmp_path / "pod.json"], Context(), schemas)
    assert [item.rule for item in found if item.rule.startswith("schema")] == ["schema-unknown-field"]


def test_values_are_derived_and_explained(folder: str) -> None:
    arguments = ("--model", SOURCES["pvc"], "--trust-remote-code", "--api-key-secret", "key")
    result = deploy("kubernetes", folder, *arguments)
    assert result.exit_code == 0, result.exception
    deployment, service = yaml.safe_load_all(result.stdout)
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert "--tensor-parallel-size=8" in container["args"]
    assert "--tool-call-parser=kimi_k2" in container["args"]
    for side in ("requests", "limits"):
        assert container["resources"][side]["nvidia.com/gpu"] == "8"
        assert container["resources"][side]["memory"] == "216Gi"
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 3600
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    key = {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}}
    assert key in container["env"]
    assert service["spec"]["ports"][0]["port"] == 8000
    explained = [line for line in result.stdout.splitlines() if " # " in line]
    assert len(explained) > 12


GUARD = "--middleware=moe4.serve.guard.KeyGuard"
PLUGIN_IMAGE = ("--image", "registry.example.com/moe4-vllm:0.1.0")


@pytest.mark.parametrize("form", FORMS)
def test_the_key_guards_all_where_moe4_is_in_the_image(form: str, folder: str, tmp_path: Path) -> None:
    on_cluster = form in ON_A_CLUSTER
    arguments = ["--model", SOURCES["pvc" if on_cluster else "file"], "--trust-remote-code"]
    keyed = [*arguments, "--api-key-secret", "key"]
    guarded = deploy(form, folder, *keyed, *PLUGIN_IMAGE).stdout
    assert f"{GUARD}OpenMetrics" in guarded if on_cluster else GUARD in guarded
    assert "OpenMetrics" not in guarded or on_cluster
    assert "/invocations" not in guarded
    file = tmp_path / f"deployment{SUFFIXES.get(form, '.yaml')}"
    file.write_text(guarded)
    assert {item.rule for item in lint_files([file], Context(), None)} <= {"not-judged"}
    stock = deploy(form, folder, *keyed).stdout
    assert "POST /invocations runs the model without it" in stock
    for text in (stock, deploy(form, folder, *arguments, *PLUGIN_IMAGE).stdout):
        assert "--middleware" not in text


@pytest.mark.parametrize("form", ["podman", "kubernetes"])
def test_on_cpus_moe4_serve_guards(form: str, folder: str) -> None:
    arguments = ["--model", SOURCES["pvc" if form == "kubernetes" else "file"], "--trust-remote-code"]
    arguments += ["--engine", "cpu", "--memory", "768", "--api-key-secret", "key"]
    text = deploy(form, folder, *arguments, "--image", "registry.example.com/moe4-cpu:0.1.0").stdout
    assert "--middleware" not in text and "/invocations" not in text
    assert ("--open-metrics" in text) == (form == "kubernetes")


def test_containers_come_back_when_the_engine_dies(folder: str) -> None:
    """vLLM's exit status is 0 then."""
    arguments = ("--model", SOURCES["file"], "--trust-remote-code")
    assert "\nRestart=always\n" in deploy("quadlet", folder, *arguments).stdout
    (service,) = yaml.safe_load(deploy("compose", folder, *arguments).stdout)["services"].values()
    assert service["restart"] == "always"
    assert "label=disable" in service["security_opt"]


def run_with_stand_in(container: dict[str, Any], folder: Path) -> list[str]:
    """Run a container's command with a `vllm` that prints its words, and what KServe sets."""
    (folder / "vllm").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "vllm").chmod(0o755)
    environment = {
        **{"PATH": f"{folder}:/usr/bin:/bin", "TENSOR_PARALLEL_SIZE": "8", "PIPELINE_PARALLEL_SIZE": "2"},
        **{"POD_IP": "10.0.0.1", "HEAD_SVC": "k2-head", "POD_NAMESPACE": "ns"},
    }
    words = [*container["command"], *container["args"]]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def read_options(words: list[str]) -> dict[str, str]:
    """Return `--name=value` words by name."""
    parts = (word.partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in parts}


def test_a_set_of_pods_over_any_number_of_machines(folder: str) -> None:
    arguments = ("--model", SOURCES["pvc"], "--trust-remote-code", "--gpu", "h100", "--gpus", "24")
    result = deploy("leaderworkerset", folder, *arguments)
    assert result.exit_code == 0, result.exception
    pods, service = yaml.safe_load_all(result.stdout)
    group = pods["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 3
    leader, worker = (group[f"{role}Template"]["spec"]["containers"][0] for role in ("leader", "worker"))
    for container in (leader, worker):
        options = read_options(container["args"])
        assert (options["--tensor-parallel-size"], options["--pipeline-parallel-size"]) == ("8", "3")
        assert options["--node-rank"] == "$(LWS_WORKER_INDEX)"  # Kubernetes fills it in: not $$(...)
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "--headless" in worker["args"] and "--headless" not in leader["args"]
    assert "startupProbe" in leader and "startupProbe" not in worker
    assert service["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    refused = deploy("kserve", folder, *arguments)
    assert "leaderworkerset" in str(refused.exception)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ["vllm", "rhaiis"])
def test_commands_call_only_what_their_image_holds(form: str, engine: Engine, folder: str) -> None:
    on_cluster = form in ON_A_CLUSTER
    arguments = [
        "--model",
        SOURCES["pvc" if on_cluster else "file"],
        "--trust-remote-code",
        "--engine",
        engine,
    ]
    if form in ("kserve", "leaderworkerset"):
        arguments += ["--gpu", "h100", "--gpus", "16"]
    text = deploy(form, folder, *arguments).stdout
    called = set(re.findall(r"^\s*(?:exec |Entrypoint=|HealthCmd=|- CMD\n\s*- )([a-z0-9]+)", text, re.M))
    for words in re.findall(r"command:((?:\n +- [^\n]*)+)", text) if on_cluster else []:
        called.add(words.split()[1])
    assert called <= set(PROGRAMS[engine])
    assert called or form in ("podman", "llmd")
    assert not re.search(r"\bray\b", text)


def test_programs_have_a_source() -> None:
    """Each names a file, a version of it, and what of it says so; our own file is read."""
    for engine, programs in PROGRAMS.items():
        for program, source in programs.items():
            file, _, says = source.partition(": ")
            assert says, (engine, program)
            if engine == "cpu":
                text = (REPOSITORY / file).read_text()
                image = re.match(r"FROM (\S+?),? ", f"{says} ")
                assert image is None or image[1] in text
            else:
                assert re.search(r"Dockerfile\S* [0-9a-f]{7}", file), (engine, program)


@pytest.mark.parametrize("form", CHECKS_ANSWERS)
def test_the_answers_are_checked_at_start_up(form: str, folder: str, tmp_path: Path) -> None:
    arguments = ("--model", SOURCES["pvc"], "--trust-remote-code", "--gpu", "h200", "--gpus", "8")
    release = write_kimi_config(tmp_path / "k2")
    refused = deploy(form, str(release), *arguments, "--check-answers")
    assert isinstance(refused.exception, DeployError)
    assert "has no moe4-probe.json" in str(refused.exception)
    (release / "moe4-probe.json").write_text("{}")
    text = deploy(form, str(release), *arguments, "--check-answers").stdout
    documents = list(yaml.safe_load_all(text))
    script = next(item for item in documents if item["kind"] == "ConfigMap")
    assert script["data"]["check.py"] == script_text()
    container = next(part for item in documents for part in containers_of(item))
    probe = container["startupProbe"]
    assert probe["exec"]["command"] == [
        "python3",
        "/opt/moe4/check.py",
        "/mnt/models",
        "http://127.0.0.1:8000",
    ]
    plain = next(
        part
        for item in yaml.safe_load_all(deploy(form, folder, *arguments).stdout)
        for part in containers_of(item)
    )["startupProbe"]
    lasts = probe["periodSeconds"] * probe["failureThreshold"]
    assert abs(lasts - plain["periodSeconds"] * plain["failureThreshold"]) <= probe["periodSeconds"]
    assert {"name": "check", "mountPath": "/opt/moe4", "readOnly": True} in container["volumeMounts"]
    (tmp_path / "m.yaml").write_text(text)
    assert [item.describe() for item in lint_files([tmp_path / "m.yaml"], Context(), None)] == []


def containers_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first containers that an object holds, at any depth."""
    if "containers" in document:
        return list(document["containers"])
    inner = [value for value in document.values() if isinstance(value, dict)]
    return next((found for value in inner if (found := containers_of(value))), [])


@pytest.mark.parametrize(
    ("form", "model", "why"),
    [
        ("podman", "file", "not podman"),
        ("llmd", "pvc", "not llmd"),
        ("kubernetes", "hf", "moe4-probe.json beside the weights"),
    ],
)
def test_a_form_that_cannot_check_the_answers_says_so(
    form: str, model: str, why: str, tmp_path: Path
) -> None:
    folder = str(write_kimi_config(tmp_path / "k2"))
    (tmp_path / "k2" / "moe4-probe.json").write_text("{}")
    arguments = ("--model", SOURCES[model], "--trust-remote-code", "--gpu", "h200", "--gpus", "8")
    result = deploy(form, folder, *arguments, "--check-answers")
    assert isinstance(result.exception, DeployError)
    assert why in str(result.exception)


def test_kserve_says_what_its_deadline_does(folder: str) -> None:
    arguments = ("--model", SOURCES["pvc"], "--trust-remote-code", "--gpu", "h200", "--gpus", "8")
    assert "ProgressDeadlineExceeded" in deploy("kserve", folder, *arguments).stdout
    assert "ProgressDeadlineExceeded" not in deploy("kubernetes", folder, *arguments).stdout


def test_several_machines_are_a_worker_spec(folder: str, tmp_path: Path) -> None:
    arguments = ("--model", SOURCES["pvc"], "--trust-remote-code", "--gpu", "h100")
    result = deploy("kserve", folder, *arguments, "--gpus", "16")
    assert result.exit_code == 0, result.exception
    runtime, service = yaml.safe_load_all(result.stdout)
    worker = runtime["spec"]["workerSpec"]
    assert (worker["tensorParallelSize"], worker["pipelineParallelSize"]) == (8, 2)
    assert [container["name"] for container in worker["containers"]] == ["worker-container"]
    head = runtime["spec"]["containers"][0]
    assert runtime["metadata"]["annotations"] == {"multinode/executor-backend": "mp"}
    for container, host in ((head, "10.0.0.1"), (worker["containers"][0], "k2-head.ns.svc.cluster.local")):
        words = run_with_stand_in(container, tmp_path)
        options = read_options(words[1:])
        assert words[:2] == ["serve", "/mnt/models"]
        assert options["--nnodes"] == "2" and options["--tensor-parallel-size"] == "8"
        assert options["--node-rank"] == ("0" if container is head else "1")
        assert options["--master-addr"] == host
        assert ("--headless" in options) == (container is not head)
        assert options["--max-model-len"] == "131072"
    assert not [word for word in head["args"] if "parallel" in word]  # KServe sets the sizes
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    spread = deploy("llmd", folder, *arguments, "--data-parallel", "16", "--expert-parallel")
    spec = yaml.safe_load(spread.stdout)["spec"]
    assert spec["parallelism"] == {"tensor": 1, "data": 16, "dataLocal": 8, "expert": True}
    assert spec["worker"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_the_smoke_request_is_one_command_of_a_shell(folder: str) -> None:
    result = deploy("kubernetes", folder, "--model", SOURCES["pvc"], "--trust-remote-code")
    lines = [
        line.lstrip("# ") for line in result.stdout.splitlines() if line.lstrip("# ").startswith("curl ")
    ]
    assert len(lines) == 1
    words = shlex.split(lines[0])
    assert json.loads(words[words.index("-d") + 1])["model"] == "kimi-k2"


def test_scripts_are_ones_a_shell_and_systemd_can_read(folder: str, tmp_path: Path) -> None:
    arguments = ("--model", SOURCES["file"], "--trust-remote-code", "--api-key-secret", "key")
    script = deploy("podman", folder, *arguments).stdout
    fake = tmp_path / "podman"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VLLM_API_KEY": "k"}
    ran = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, check=True)
    words = ran.stdout.splitlines()
    assert words[0] == "run"
    assert "/srv/models/kimi k2:/mnt/models:ro" in words
    assert words[-1] == "--trust-remote-code"
    assert words.count("--device") == 8
    environment.pop("VLLM_API_KEY")
    ran = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode != 0
    assert "VLLM_API_KEY" in ran.stderr
    unit = deploy("quadlet", folder, *arguments).stdout
    sections = [line for line in unit.splitlines() if line.startswith("[")]
    assert sections == ["[Unit]", "[Container]", "[Service]", "[Install]"]
    assert "AddDevice=nvidia.com/gpu=7" in unit


def test_the_cpu_form_runs_moe4_serve(tmp_path: Path) -> None:
    refused = deploy("compose", str(K2_TINY), "--engine", "cpu", "--memory", "8")
    assert "not W4A16" in str(refused.exception)
    config = json.loads((K2_TINY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_bytes((K2_TINY / "tokenizer_config.json").read_bytes())
    result = deploy("compose", str(tmp_path), "--engine", "cpu", "--memory", "8", "--name", "k2-tiny")
    assert result.exit_code == 0, result.exception
    service = yaml.safe_load(result.stdout)["services"]["k2-tiny"]
    assert service["entrypoint"] == ["moe4", "serve"]
    assert service["image"] == "localhost/moe4-cpu:0.1.0"
    assert not [word for word in service["command"] if "tool" in word]  # moe4 serve sees to it
    assert "deploy" not in service


def test_the_cpu_form_asks_for_the_weights_memory(folder: str) -> None:
    arguments = ["--model", SOURCES["pvc"], "--trust-remote-code", "--engine", "cpu", "--memory", "768"]
    assert "cannot pull" in str(deploy("kubernetes", folder, *arguments).exception)
    result = deploy("kubernetes", folder, *arguments, "--image", "registry.example.com/moe4-cpu:0.1.0")
    assert result.exit_code == 0, result.exception
    container = next(yaml.safe_load_all(result.stdout))["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["moe4", "serve"]
    assert 510 < int(container["resources"]["limits"]["memory"].removesuffix("Gi")) < 768
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kserve", "--gpu", "h100", "--gpus", "8"], "--max-model-len 59008 would fit"),
        (["kserve", "--gpu", "h100", "--gpus", "4"], "cannot be served on 4 x H100"),
        (["kserve", "--gpu", "h200", "--gpus", "3"], "cannot be served on 3 x H200 (PP3)"),
        (["kserve", "--gpu", "h200", "--gpus", "8", "--model", "file:///srv"], "do not see /srv"),
        (["kserve", "--gpu", "h100", "--gpus", "16", "--model", "hf://a/b"], "pvc:// and oci://"),
        (["kubernetes", "--gpu", "h100", "--gpus", "16"], "2 machines; kubernetes runs on one"),
        (["llmd", "--gpu", "h100", "--gpus", "16"], "--data-parallel 16 and --expert-parallel"),
        (["podman", "--gpu", "h200", "--model", "pvc://a/b"], "mounts a folder"),
        (["kserve", "--image", "example.com/vllm"], "no fixed tag"),
        (["kserve", "--name", "Kimi_K2"], "lower-case"),
        (["kserve", "--port", "80"], "1024"),
        (["kserve", "--gpus", "8"], "need --gpu"),
        (["kserve", "--model", "models/k2"], "is not an address"),
        (["llmd", "--port", "9000"], "port 8000"),
        (["kserve", "--gpu", "mi300x"], "MI300X"),
        (["helm"], "unknown form helm"),
        (["kserve", "--engine", "tgi"], "none of vllm"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(arguments: list[str], message: str, folder: str) -> None:
    form, *options = arguments
    if "--model" not in options and form in ON_A_CLUSTER:
        options += ["--model", SOURCES["pvc"]]
    result = deploy(form, folder, "--trust-remote-code", *options)
    assert isinstance(result.exception, Moe4Error), result.output
    text = str(result.exception)
    assert "\n" not in text
    assert message in text


def test_one_group_a_gpu_needs_an_image_with_the_plugin(tmp_path: Path) -> None:
    source = write_random_model(tmp_path / "source", num_hidden_layers=2, n_routed_experts=4)
    release = str(write_rounded_release(source, tmp_path / "release", 128))  # the inner width is 128
    for asked in ((), ("--gpu", "h200"), ("--gpu", "h200", "--gpus", "1")):
        refused = deploy("podman", release, *asked)
        assert isinstance(refused.exception, DeployError), refused.output
        text = str(refused.exception)
        assert "is one group of 128 codes: vLLM on GPUs gives wrong answers without moe4's plugin" in text
        assert text.endswith("use a release in groups of 64 or 32 or an image with moe4's plugin")
        assert "\n" not in text
        assert deploy("podman", release, *asked, "--plugin").exit_code == 0
        assert deploy("podman", release, *asked, "--image", "registry.example.com/moe4-gpu:1").exit_code == 0
    assert deploy("podman", release, "--engine", "cpu", "--memory", "16").exit_code == 0


def test_code_beside_the_weights_is_not_run_unasked(folder: str) -> None:
    result = deploy("kserve", folder, "--model", SOURCES["pvc"])
    assert "--trust-remote-code" in str(result.exception)
    tiny = deploy("podman", str(K2_TINY))
    assert tiny.exit_code == 0
    assert "--trust-remote-code" not in tiny.stdout
