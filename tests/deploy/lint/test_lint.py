"""Lint: every fault of the card's samples, webhook rules, command lines, places, fixes, SARIF."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from deploy.deploy_cases import write_kimi_config
from shared_data import shared_path
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.lint.finding import RULES
from moe4.errors import DeployError, MissingFileError

SAMPLES = Path(__file__).parent / "samples"
RUNTIME, SERVICE = SAMPLES / "card-runtime.yaml", SAMPLES / "card-service.yaml"
CURL, PODMAN = SAMPLES / "card-curl.sh", SAMPLES / "card-podman.sh"


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_kimi_config(tmp_path_factory.mktemp("kimi") / "Kimi-K2-Instruct"))


def lint(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["lint", *map(str, arguments)])


def findings(*arguments: str | Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lint(*arguments, "--json").stdout)
    return [item for item in found if item["level"] != "note"]


def rules(*arguments: str | Path) -> set[str]:
    return {item["rule"] for item in findings(*arguments)}


def lint_text(tmp_path: Path, text: str, name: str = "m.yaml", *arguments: str) -> list[dict[str, Any]]:
    (tmp_path / name).write_text(text)
    return findings(tmp_path / name, *arguments)


def test_every_fault_of_the_cards_manifests_is_found(kimi: str) -> None:
    found = rules(RUNTIME, SERVICE, "--release", kimi)
    assert found == {
        "gpu-too-few",  # one GPU
        "memory-too-small",  # 8Gi
        "parallel-missing",
        "tools-missing",
        "shm-missing",
        "probe-startup-missing",
        "probe-missing",
        "image-staging",
        "image-untagged",
        "mode-deprecated",  # RawDeployment
        "strategy-rolling",
        "user-root",
    }
    assert lint(RUNTIME, SERVICE, "--release", kimi).exit_code == 1


def test_a_runtime_is_judged_once_with_the_service_that_names_it(kimi: str) -> None:
    found = [item["rule"] for item in findings(RUNTIME, SERVICE, "--release", kimi)]
    assert [found.count(rule) for rule in ("shm-missing", "user-root", "tools-missing")] == [1, 1, 1]


def test_the_cards_manifests_pass_the_schemas_all_the_same() -> None:
    found = rules(RUNTIME, SERVICE, "--crds", shared_path("schemas", "kserve"))
    assert not found & {"schema", "schema-unknown-field"}


def test_every_fault_of_the_cards_commands_is_found(kimi: str) -> None:
    assert rules(CURL) == {"shell-continuation", "shell-placeholder"}
    assert rules(PODMAN, "--release", kimi) == {
        "gpu-too-few",
        "parallel-missing",
        "tools-missing",
        "shm-missing",
        "image-staging",
        "image-untagged",
    }


def test_findings_name_line_column_and_path(kimi: str) -> None:
    found = {item["rule"]: item for item in findings(RUNTIME, SERVICE, "--release", kimi)}
    mode = found["mode-deprecated"]
    line = SERVICE.read_text().splitlines()[mode["line"] - 1]
    assert line[mode["column"] - 1 :].startswith("serving.kserve.io/deploymentMode: RawDeployment")
    assert mode["path"] == 'metadata.annotations["serving.kserve.io/deploymentMode"]'
    resources = found["gpu-too-few"]
    line = SERVICE.read_text().splitlines()[resources["line"] - 1]
    assert line[resources["column"] - 1 :] == "resources:"
    assert resources["path"] == "spec.predictor.model.resources"
    assert "1 x B200" in resources["why"]
    image = found["image-untagged"]
    assert RUNTIME.read_text().splitlines()[image["line"] - 1].strip() == "image: quay.io/example/vllm"
    for item in found.values():
        assert item["why"]
        assert item["fix"]


def test_fix_mends_what_is_safe_and_keeps_the_rest(tmp_path: Path) -> None:
    for sample in SAMPLES.iterdir():
        shutil.copy(sample, tmp_path)
    files = [tmp_path / sample.name for sample in (RUNTIME, SERVICE, CURL)]
    before = rules(*files)
    result = lint(*files, "--fix")
    assert "mended" in result.stderr
    after = rules(*files)
    assert before - after == {"mode-deprecated", "shm-missing", "strategy-rolling", "shell-continuation"}
    service = files[1].read_text()
    assert "serving.kserve.io/deploymentMode: Standard" in service
    assert service.splitlines()[0] == SERVICE.read_text().splitlines()[0]  # comments stay
    kept = [line for line in SERVICE.read_text().splitlines() if "RawDeployment" not in line]
    assert set(kept) <= set(service.splitlines())
    again = [file.read_text() for file in files]
    lint(*files, "--fix")
    assert [file.read_text() for file in files] == again


MULTI_NODE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: k2
spec:
  predictor:
    canaryTrafficPercent: 10
    model:
      modelFormat: {name: vLLM}
      storageUri: hf://moonshotai/Kimi-K2-Instruct
      env:
        - name: TENSOR_PARALLEL_SIZE
          value: "8"
    workerSpec:
      pipelineParallelSize: 0
      containers:
        - name: worker
        - name: other
"""


def test_webhook_rules_of_multi_node_services(tmp_path: Path) -> None:
    found = {item["rule"] for item in lint_text(tmp_path, MULTI_NODE)}
    assert {f"multinode-{name}" for name in ("storage", "autoscaler", "canary", "env", "worker")} <= found


def test_webhook_rules_of_multi_node_runtimes(tmp_path: Path) -> None:
    text = MULTI_NODE.replace("kind: InferenceService", "kind: ServingRuntime").replace("v1beta1", "v1alpha1")
    head, _, worker = text.partition("    workerSpec:")
    container = "  containers:\n    - name: kserve-container\n"
    container += "      env: [{name: PIPELINE_PARALLEL_SIZE, value: '2'}]\n"
    text = head.partition("  predictor:")[0] + container + "  workerSpec:" + worker
    found = [(item["rule"], item["path"]) for item in lint_text(tmp_path, text)]
    assert ("multinode-env", "spec.containers[0].env[0]") in found
    assert ("multinode-worker", "spec.workerSpec.pipelineParallelSize") in found


@pytest.mark.parametrize(
    ("parallelism", "worker", "refused"),
    [
        ("{data: 16}", True, True),
        ("{data: 16, dataLocal: 5}", True, True),
        ("{data: 16, dataLocal: 8, pipeline: 2}", True, True),
        ("{tensor: 8}", True, True),
        ("{data: 16, dataLocal: 8}", False, True),
        ("{data: 16, dataLocal: 8, expert: true}", True, False),
        ("{tensor: 8, pipeline: 2}", True, False),
    ],
)
def test_webhook_rules_of_llm_services(tmp_path: Path, parallelism: str, worker: bool, refused: bool) -> None:
    text = f"""\
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceService
metadata: {{name: k2}}
spec:
  model: {{uri: "pvc://m/k2", name: k2}}
  parallelism: {parallelism}
  template: {{}}
"""
    text += "  worker: {}\n" if worker else ""
    found = {item["rule"] for item in lint_text(tmp_path, text)}
    assert ("llmd-parallelism" in found) == refused


POD = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: k2}
spec:
  strategy: {type: Recreate}
  template:
    spec:
      containers:
        - name: vllm
          image: docker.io/vllm/vllm-openai:v0.32.0
          args: [--port=8000, --tensor-parallel-size, "8", --max-model-len=131072,
                 --enable-auto-tool-choice, --tool-call-parser=kimi_k2]
          env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: a, key: b}}}]
          resources:
            requests: {memory: 256Gi, nvidia.com/gpu: 8}
            limits: {memory: 256Gi, nvidia.com/gpu: 8}
          securityContext: {runAsNonRoot: true, runAsUser: 1000}
          startupProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 10, failureThreshold: 400}
          readinessProbe: {httpGet: {path: /health, port: 8000}}
          livenessProbe: {httpGet: {path: /health, port: 8000}}
          volumeMounts: [{name: shm, mountPath: /dev/shm}]
      volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}]
"""


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        (
            "limits: {memory: 256Gi, nvidia.com/gpu: 8}",
            "limits: {memory: 256Gi, nvidia.com/gpu: 4}",
            "gpu-requests-limits",
        ),
        ("nvidia.com/gpu: 8", "example.com/fpga: 8", "gpu-missing"),
        ('"8"', '"4"', "parallel-mismatch"),
        ('"8"', '"3"', "parallel-divide"),
        ("memory: 256Gi", "memory: 32Gi", "memory-too-small"),
        (", sizeLimit: 16Gi", "", "shm-unbounded"),
        ("mountPath: /dev/shm", "mountPath: /shm", "shm-missing"),
        ("sizeLimit: 16Gi", "sizeLimit: 64Mi", "shm-missing"),
        ("sizeLimit: 16Gi", "sizeLimit: 1023Mi", "shm-missing"),
        ("memory: 256Gi", "memory: 55Gi", "memory-too-small"),
        ("startupProbe", "x-startupProbe", "probe-startup-missing"),
        ("failureThreshold: 400", "failureThreshold: 54", "probe-startup-short"),
        ("livenessProbe", "x-livenessProbe", "probe-missing"),
        ("--port=8000", "--port=9000", "probe-port"),
        ("--max-model-len=131072", "--max-model-len=200000", "max-model-len"),
        ("kimi_k2", "hermes", "tools-missing"),
        (":v0.32.0", ":latest", "image-untagged"),
        (":v0.32.0", "", "image-untagged"),
        ("docker.io/", "registry.stage.example.com/", "image-staging"),
        ("Recreate", "RollingUpdate", "strategy-rolling"),
        ("{runAsNonRoot: true, runAsUser: 1000}", "{}", "user-root"),
        ("valueFrom: {secretKeyRef: {name: a, key: b}}", "value: hf_abc", "secret-inline"),
    ],
)
def test_a_pod_with_one_fault_has_that_finding(
    tmp_path: Path, kimi: str, good: str, bad: str, rule: str
) -> None:
    options = ("--release", kimi, "--gpu", "h200")
    assert lint_text(tmp_path, POD, "good.yaml", *options) == []
    assert good in POD
    found = {item["rule"] for item in lint_text(tmp_path, POD.replace(good, bad), "bad.yaml", *options)}
    assert rule in found
    assert found <= {rule, "gpu-too-few", "parallel-mismatch", "parallel-divide"}


def test_a_repair_changes_its_own_lines_alone(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    good = POD.replace(",\n                 --enable", ", --enable").replace("name: vllm", 'name: "vllm"')
    bad = good.replace("{type: Recreate}", '{type: "RollingUpdate"}')
    file.write_text(bad)
    lint(file, "--fix")
    before, after = bad.splitlines(), file.read_text().splitlines()
    changed = [line for line in before if line not in after]
    assert [line.strip() for line in changed] == ['strategy: {type: "RollingUpdate"}']


@pytest.mark.parametrize(
    ("good", "least"),
    [
        ("sizeLimit: 16Gi", "sizeLimit: 1Gi"),
        ("memory: 256Gi", "memory: 56Gi"),  # 8, 4 for each of 8 GPUs, and 16 of /dev/shm
        ("failureThreshold: 400", "failureThreshold: 55"),  # 547 GB at 1 GB/s
    ],
)
def test_the_least_that_is_enough_has_no_finding(tmp_path: Path, kimi: str, good: str, least: str) -> None:
    assert good in POD
    assert lint_text(tmp_path, POD.replace(good, least), "m.yaml", "--release", kimi, "--gpu", "h200") == []


OF_THE_CONTAINER = "          securityContext: {runAsNonRoot: true, runAsUser: 1000}\n"


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (OF_THE_CONTAINER, "          securityContext: {runAsUser: 1000}\n"),
        (OF_THE_CONTAINER, "      securityContext: {runAsNonRoot: true, runAsUser: 1000}\n"),  # of the pod
        ("kind: Deployment", "kind: StatefulSet"),
        ('--tensor-parallel-size, "8"', "--tensor-parallel-size=8"),
        ('--tensor-parallel-size, "8"', '-tp, "8"'),
        ("mountPath: /dev/shm", "mountPath: /dev/shm/"),
        ("memory: 256Gi", 'memory: "274877906944"'),
        ("nvidia.com/gpu: 8", 'nvidia.com/gpu: "8"'),
    ],
)
def test_another_way_to_write_it_has_no_finding(tmp_path: Path, kimi: str, here: str, there: str) -> None:
    assert here in POD
    text = POD.replace(here, there)
    if there.startswith("      securityContext"):
        text = POD.replace(here, "").replace("      containers:\n", there + "      containers:\n")
    assert lint_text(tmp_path, text, "m.yaml", "--release", kimi, "--gpu", "h200") == []


def test_one_group_a_gpu_needs_the_plugin(tmp_path: Path, kimi: str) -> None:
    """Groups of 64, TP32: two machines' worth of ranks that divide everything, with one group each."""
    wide = (
        POD.replace('"8"', '"32"')
        .replace("nvidia.com/gpu: 8", "nvidia.com/gpu: 32")
        .replace("256Gi", "512Gi")
    )
    options = ("--release", kimi, "--group-size", "64", "--gpu", "h200")
    found = lint_text(tmp_path, wide, "stock.yaml", *options)
    assert [(item["rule"], item["level"]) for item in found] == [("parallel-one-group", "error")]
    assert "64 on each of 32 ranks, is one group of 64 codes" in found[0]["why"]
    assert found[0]["fix"] == (
        "use tensor parallel 16 x pipeline parallel 2, expert parallelism, a release in groups of 32 "
        "or an image with moe4's plugin"
    )
    assert lint_text(tmp_path, wide, "told.yaml", *options, "--plugin") == []
    ours = wide.replace("vllm/vllm-openai", "ai/moe4-gpu")
    assert ours != wide
    assert lint_text(tmp_path, ours, "ours.yaml", *options) == []
    whole = wide.replace("--port=8000", "--port=8000, --enable-expert-parallel")
    assert whole != wide
    assert lint_text(tmp_path, whole, "whole.yaml", *options) == []
    assert lint_text(tmp_path, wide, "amd.yaml", *options[:-1], "mi300x") == []
    assert "parallel-one-group" not in rules(tmp_path / "stock.yaml", *options[:2], "--group-size", "32")


def test_the_gpus_that_are_there_decide(tmp_path: Path, kimi: str) -> None:
    found = lint_text(tmp_path, POD, "pod.yaml", "--release", kimi, "--gpu", "h100")
    assert [item["rule"] for item in found] == ["gpu-too-few"]
    assert "59008 tokens" in found[0]["why"]


def test_a_start_shorter_than_the_load_depends_on_the_disk(tmp_path: Path, kimi: str) -> None:
    slow = lint_text(tmp_path, POD, "pod.yaml", "--release", kimi, "--gpu", "h200", "--disk", "0.1")
    assert [item["rule"] for item in slow] == ["probe-startup-short"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("curl http://h/v1/models", set()),
        ("curl http://h/v1/x \\\n  -d '{\n  \"a\": 1\n}'\necho done", set()),
        ("curl http://h/v1/x \\ \n  -d '{}'", {"shell-continuation"}),
        ("curl http://h/v1/x\n  -d '{}'", {"shell-continuation"}),
        ("curl http://h/v1/x -d '{\"a\": 1'", {"curl-json"}),
        ('curl http://h/v1/x -d \'{"a": 1}', {"shell-quotes"}),
        ("curl -H 'A: b'", {"curl-url"}),
        ("curl http://<host>/v1", {"shell-placeholder"}),
        ("curl 'http://<host>/v1'", set()),
        ("curl -s $URL/v1/models | jq .", set()),
        ("curl -d '{\"a\": [1]}' http://h/v1;\necho", set()),
        ("# curl http://<host>\n\nls -l\n  -x", set()),
        ("podman run --device nvidia.com/gpu=0 --shm-size 8g docker.io/vllm/vllm-openai:v1 --model m", set()),
        ("podman run docker.io/vllm/vllm-openai:v1 --model m", {"gpu-missing", "shm-missing"}),
        (
            "docker run --gpus all --ipc=host -e HF_TOKEN=hf_x docker.io/vllm/vllm-openai:v1 --model m -tp 2",
            {"secret-inline"},
        ),
    ],
)
def test_command_lines(tmp_path: Path, script: str, expected: set[str]) -> None:
    found = {item["rule"] for item in lint_text(tmp_path, script + "\n", "run.sh")}
    assert found - {"file-unreadable"} == expected


def test_markdown_blocks_are_read_at_their_lines(tmp_path: Path) -> None:
    text = f"# Serve\n\n```bash\ncurl http://h/v1/x\n  -d '{{}}'\n```\n\n```yaml\n{SERVICE.read_text()}```\n"
    found = {item["rule"]: item for item in lint_text(tmp_path, text, "guide.md")}
    assert found["shell-continuation"]["line"] == 4
    assert text.splitlines()[found["mode-deprecated"]["line"] - 1].endswith("RawDeployment")


def test_sarif_has_the_structure_of_its_standard(kimi: str) -> None:
    log = json.loads(lint(RUNTIME, SERVICE, CURL, "--release", kimi, "--sarif").stdout)
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "moe4 lint"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids)) == len(RULES)
    assert len(run["results"]) > 10
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert physical["artifactLocation"]["uri"]
        assert physical["region"]["startLine"] >= 1
        assert physical["region"]["startColumn"] >= 1


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (broken,) = lint_text(tmp_path, "a: [1,\nb: }", "x.yaml")
    assert (broken["rule"], broken["line"], broken["column"]) == ("file-unreadable", 2, 4)
    assert isinstance(lint(tmp_path / "none.yaml").exception, MissingFileError)
    for options in (["--crds", "/nowhere"], ["--json", "--sarif"], ["--gpu", "abacus"]):
        assert isinstance(lint(RUNTIME, *options).exception, DeployError)


def test_crds_come_from_the_cluster_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}}},
    }
    crd = {
        "spec": {
            "group": "example.com",
            "names": {"kind": "Thing"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}],
        }
    }
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f"#!/bin/sh\n[ \"$*\" = 'get crd -o json' ] && echo '{json.dumps({'items': [crd]})}'\n"
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    text = "apiVersion: example.com/v1\nkind: Thing\nspec:\n  replicas: two\n  size: 3\n"
    found = lint_text(tmp_path, text, "thing.yaml", "--cluster")
    assert {(item["rule"], item["line"]) for item in found} == {
        *(("schema", 4), ("schema-unknown-field", 5)),
        ("not-read", 1),  # but for its schema
    }
    kubectl.write_text("#!/bin/sh\necho no cluster >&2\nexit 1\n")
    error = lint(tmp_path / "thing.yaml", "--cluster").exception
    assert isinstance(error, DeployError)
    assert "no cluster" in str(error)


def pod(size: str, env: str = "[]") -> str:
    """The pod of POD with another tensor-parallel size and these variables."""
    text = POD.replace('"8", --max', f'"{size}", --max')
    return text.replace(
        "env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: a, key: b}}}]", f"env: {env}"
    )


@pytest.mark.parametrize("written", ["$(TP)", "$TP", "${TP}", "${TP:-8}"])
@pytest.mark.parametrize(
    ("env", "wrong"),
    [
        ("[{name: TP, value: '8'}]", False),
        ("[{name: TP, value: '4'}]", True),
        ("[{name: TP, valueFrom: {configMapKeyRef: {name: a, key: b}}}]", False),
        ("[]", False),
    ],
)
def test_sizes_given_by_variables(tmp_path: Path, kimi: str, written: str, env: str, wrong: bool) -> None:
    options = ("--release", kimi, "--gpu", "h200")
    found = {item["rule"] for item in lint_text(tmp_path, pod(written, env), "a.yaml", *options)}
    assert ("parallel-mismatch" in found) == wrong, found
    assert found <= {"parallel-mismatch", "gpu-too-few"}


@pytest.mark.parametrize("length", ["$(LEN)", "{{ .Values.length }}"])
def test_a_length_that_is_not_seen_is_not_taken_for_the_longest(
    tmp_path: Path, kimi: str, length: str
) -> None:
    text = POD.replace("--max-model-len=131072", f'"--max-model-len={length}"')
    options = ("--release", kimi, "--gpu-memory", "76")
    assert "gpu-too-few" in {item["rule"] for item in lint_text(tmp_path, POD, "a.yaml", *options)}
    assert "gpu-too-few" not in {item["rule"] for item in lint_text(tmp_path, text, "a.yaml", *options)}
    options = ("--release", kimi, "--gpu-memory", "48")
    assert "gpu-too-few" in {item["rule"] for item in lint_text(tmp_path, text, "a.yaml", *options)}


def test_gpus_in_limits_alone_are_requested_too(tmp_path: Path) -> None:
    text = POD.replace("requests: {memory: 256Gi, nvidia.com/gpu: 8}", "requests: {memory: 256Gi}")
    assert lint_text(tmp_path, text) == []
    text = POD.replace("limits: {memory: 256Gi, nvidia.com/gpu: 8}", "limits: {memory: 256Gi}")
    assert {item["rule"] for item in lint_text(tmp_path, text)} == {"gpu-requests-limits"}


@pytest.mark.parametrize("services", ["[a, b]", "vllm", "5"])
def test_services_that_are_no_mapping(tmp_path: Path, services: str) -> None:
    found = lint_text(tmp_path, f"services: {services}\n")
    assert [(item["rule"], item["line"]) for item in found] == [("file-unreadable", 1)]
