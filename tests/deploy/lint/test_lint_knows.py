"""Lint knows what it knows: options by vLLM's own table, what was not read, what is no fault."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from vllm_forks import VllmForks

from moe4.cli.app import app
from moe4.deploy.lint.command.commandline import served_words, split_script
from moe4.deploy.lint.command.options import tables
from moe4.deploy.lint.place import Document, Place
from moe4.serve.sizes import read_size

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: k2}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 1000}
  volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}]
  containers:
    - name: vllm
      image: docker.io/vllm/vllm-openai:v0.32.0
      command: [vllm, serve]
      args: [/mnt/models, --port=8000, --tensor-parallel-size=8]
      volumeMounts: [{name: shm, mountPath: /dev/shm}]
      ports: [{name: http, containerPort: 8000}]
      startupProbe: {httpGet: {path: /health, port: 8000}, failureThreshold: 900}
      readinessProbe: {httpGet: {path: /health, port: 8000}}
      livenessProbe: {httpGet: {path: /health, port: 8000}}
      resources: {limits: {nvidia.com/gpu: "8", memory: 300Gi}}
"""


def lint(*files: Path, options: tuple[str, ...] = ()) -> tuple[int, set[tuple[str, str]]]:
    """Return the exit code, and rule and level of each finding."""
    result = CliRunner().invoke(app, ["lint", *map(str, files), "--json", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, {(item["rule"], item["level"]) for item in json.loads(result.stdout)}


def lint_text(folder: Path, text: str, name: str = "m.yaml") -> tuple[int, set[tuple[str, str]]]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return lint(folder / name)


def with_argument(*words: str) -> str:
    return POD.replace("--tensor-parallel-size=8]", f"--tensor-parallel-size=8, {', '.join(words)}]")


def test_the_pod_is_clean(tmp_path: Path) -> None:
    assert lint_text(tmp_path, POD) == (0, set())


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--swap-space=16"], "option-unknown"),
        (["--disable-log-requests"], "option-unknown"),
        (["--enable-auto-tool-choise"], "option-unknown"),
        (["--max_modell_len", '"32768"'], "option-unknown"),
        (["--dtype=int4"], "option-value"),
        (["--kv-cache-dtype", "int3"], "option-value"),
        (["--tool-call-parser=kimi-k2"], "option-value"),
        (["--reasoning-parser=deepseek"], "option-value"),
        (["--gpu-memory-utilization=95"], "option-value"),
        (["--gpu-memory-utilization=0"], "option-value"),
        (["--max-num-seqs=0"], "option-value"),
        (["--max-num-seqs=many"], "option-value"),
        (["--max-model-len=32kb"], "option-value"),
        (["--enable-prefix-caching=true"], "option-value"),
        (["--seed"], "option-value"),
        (["--host=127.0.0.1"], "host-loopback"),
        (["--host", "localhost"], "host-loopback"),
    ],
)
def test_what_vllm_would_refuse(tmp_path: Path, words: list[str], rule: str) -> None:
    assert lint_text(tmp_path, with_argument(*words)) == (1, {(rule, "error")})


@pytest.mark.parametrize(
    "words",
    [
        ["--max-model-len=32k"],
        ["--max-model-len=auto"],
        ["--max_model_len", '"32768"'],
        ["-tp=8"],
        ["-O3"],
        ["--no-enable-prefix-caching"],
        ["--compilation-config.mode=3"],
        ["--compilation-config", "'{\"mode\": 3}'"],
        ["--gpu-memory-util=0.9"],
        ["--tool-call-parser=ours", "--tool-parser-plugin=/opt/ours.py"],
        ["--served-model-name", "a", "b"],
        ["--gpu-memory-utilization=$(NOT_SEEN)"],
        ["--host=0.0.0.0"],
    ],
)
def test_what_vllm_takes(tmp_path: Path, words: list[str]) -> None:
    assert lint_text(tmp_path, with_argument(*words)) == (0, set())


def test_another_version_is_not_judged_and_named(tmp_path: Path) -> None:
    text = with_argument("--swap-space=16").replace("v0.32.0", "v0.5.0")
    assert lint_text(tmp_path, text) == (0, {("not-judged", "note")})


@pytest.mark.parametrize(
    ("tag", "rules"),
    [("v0.8.5", set()), ("v0.10.1.1", set()), ("v0.31.0", {("option-unknown", "error")})],
)
def test_options_are_those_of_the_version(tmp_path: Path, tag: str, rules: set[tuple[str, str]]) -> None:
    """`--swap-space` was an option until it was removed; a patch release may have a table of its own."""
    found = lint_text(tmp_path, with_argument("--swap-space=16").replace("v0.32.0", tag))
    assert found == (1 if rules else 0, rules)


def test_a_slip_is_found_in_an_image_of_unknown_version(tmp_path: Path) -> None:
    text = with_argument("--enable-auto-tool-choise", "--of-a-fork").replace(
        "docker.io/vllm/vllm-openai:v0.32.0", "registry.example/vllm-fork:1"
    )
    assert lint_text(tmp_path, text) == (0, {("not-judged", "note"), ("option-unknown", "warning")})


@pytest.mark.vllm
def test_the_table_is_that_of_the_installed_vllm(vllm_forks: VllmForks) -> None:
    """vLLM's own parser, in a process of its own, agrees with the table on every option."""
    pytest.importorskip("vllm")
    code = """
        import json, sys
        sys.path.insert(0, sys.argv[1])
        import dump_vllm_options as dump
        print(json.dumps(dump.options_of(dump.serve_parser())))
    """
    done = vllm_forks.program(code, str(Path(__file__).parents[3] / "scripts"))
    assert done.returncode == 0, done.stderr
    dumped = json.loads(done.stdout.splitlines()[-1])
    table = tables()["0.32"].items()
    spans = {"first", "last"}
    assert dumped == {name: option.model_dump(exclude_none=True, exclude=spans) for name, option in table}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("vllm serve m \\\n  --port 8000 \\\n  -tp 8", ["m", "--port", "8000", "-tp", "8"]),
        ("ray start --head --port=6379; exec vllm serve m --port 8000", ["m", "--port", "8000"]),
        ("export A=1\nvllm serve m >log 2>&1 &", ["m"]),
        ("python3 -m vllm.entrypoints.openai.api_server --model m && echo done", ["--model", "m"]),
        ('exec vllm serve m "$@"', ["m", "--given"]),
        ("/start.sh", None),
        ("vllm serve a & vllm serve b", None),
        ("vllm serve 'open", None),
    ],
)
def test_the_server_in_a_script(script: str, words: list[str] | None) -> None:
    place = Place(document=Document(file=Path("m.yaml")))
    items = [(text, place) for text in ("bash", "-c", script, "name", "--given")]
    found = served_words(items, image_serves=False)
    assert (None if found is None else [text for text, _ in found if text != "2"]) == words


def test_scripts_of_any_form_are_split_or_left() -> None:
    assert split_script("# it's a comment\na b;c|d") == [["a", "b"], ["c"], ["d"]]


HELM = "containers:\n  - name: vllm\n    image: {{ .Values.image }}\n  {{- if .Values.gpu }}\n  x: 1\n"
RAY = "apiVersion: ray.io/v1\nkind: RayCluster\nspec: {rayVersion: '2.9'}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty.yaml", ""),
        ("comments.yaml", "# nothing\n---\n"),
        ("empty.sh", "\n"),
        ("values.yaml", "image: vllm/vllm-openai\nreplicas: 1\n"),
        ("deployment.yaml", HELM),
        ("Chart.yaml", "apiVersion: v2\nname: k2\n"),
        ("kustomization.yaml", "resources: [a.yaml]\n"),
        ("k.yaml", "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n"),
        ("ray.yaml", RAY),
        ("dynamo.yaml", "apiVersion: nvidia.com/v1\nkind: DynamoGraphDeployment\nspec: {services: {}}\n"),
        ("x.json", "[1, 2]"),
        ("k2.service", "[Service]\nExecStart=vllm serve m\n"),
    ],
)
def test_what_is_not_read_is_named_with_an_exit_code_of_its_own(tmp_path: Path, name: str, text: str) -> None:
    assert lint_text(tmp_path, text, name) == (3, {("not-read", "unread")})


def test_what_holds_no_server_is_read(tmp_path: Path) -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
    assert lint_text(tmp_path, text) == (0, set())


def test_unknown_programs_with_gpus_are_not_clean(tmp_path: Path) -> None:
    text = POD.replace("docker.io/vllm/vllm-openai:v0.32.0", "ours:1").replace("vllm, serve", "run")
    assert lint_text(tmp_path, text.replace("name: vllm", "name: a")) == (3, {("not-read", "unread")})


def as_pod_of(kind: str, path: tuple[str, ...], faults: str) -> str:
    """Return the pod, JSON, at a path of another kind's object."""
    from ruamel.yaml import YAML

    node: dict[str, Any] = {"spec": YAML(typ="safe", pure=True).load(POD.replace(*faults.split("|")))["spec"]}
    for key in reversed(path):
        node = {key: [node]} if key.endswith("s") and key != "items" else {key: node}
    return json.dumps({"apiVersion": "example.com/v1", "kind": kind, "metadata": {"name": "a"}, **node})


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("LeaderWorkerSet", ("spec", "leaderWorkerTemplate", "leaderTemplate")),
        ("RayCluster", ("spec", "headGroupSpec", "template")),
        ("RayCluster", ("spec", "workerGroupSpecs", "template")),
        ("Job", ("spec", "template")),
        ("Rollout", ("spec", "template")),
    ],
)
@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (":v0.32.0|:latest", "image-untagged"),
        ("--tensor-parallel-size=8|--tensor-parallel-size=4", "parallel-mismatch"),
        ("[/mnt/models|[/mnt/models, --swap-space=4", "option-unknown"),
    ],
)
def test_pods_are_found_in_any_kind(
    tmp_path: Path, kind: str, path: tuple[str, ...], fault: str, rule: str
) -> None:
    assert lint_text(tmp_path, as_pod_of(kind, path, "x|x"), "good.json") == (0, set())
    code, found = lint_text(tmp_path, as_pod_of(kind, path, fault), "bad.json")
    assert code == 1
    assert (rule, "error") in found


def test_lists_are_read_as_their_objects(tmp_path: Path) -> None:
    body = POD.replace("=8]", "=4]").replace("\n", "\n    ")
    nested = f"apiVersion: v1\nkind: List\nitems:\n  - {body.strip()}\n"
    assert lint_text(tmp_path, nested) == (1, {("parallel-mismatch", "error")})


def test_a_values_source_in_a_config_map(tmp_path: Path) -> None:
    reference = "env: [{name: TP, valueFrom: {configMapKeyRef: {name: c, key: size}}}]"
    text = POD.replace("=8]", "=$(TP)]").replace("      ports:", f"      {reference}\n      ports:")
    config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {size: '%s'}\n"
    assert lint_text(tmp_path, text) == (0, {("not-judged", "note")})
    assert lint_text(tmp_path, text + config % 8) == (0, set())
    assert lint_text(tmp_path, text + config % 4) == (1, {("parallel-mismatch", "error")})
    whole = text.replace(reference, "envFrom: [{configMapRef: {name: c}}]").replace("$(TP)", "$(size)")
    assert lint_text(tmp_path, whole + config % 4) == (1, {("parallel-mismatch", "error")})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("port: 8000}, failure", "port: htttp}, failure", {("probe-port", "error")}),
        ("port: 8000}, failure", "port: http}, failure", set()),
        ("containerPort: 8000}]", "containerPort: 9000}]", set()),
        (":v0.32.0", ":nightly", {("image-untagged", "error"), ("not-judged", "note")}),
        (":v0.32.0", ":latest-x86_64", {("image-untagged", "error"), ("not-judged", "note")}),
        (":v0.32.0", ":nightly-0123456789abcdef0123456789abcdef01234567", {("not-judged", "note")}),
        (", runAsUser: 1000", "", {("user-image-root", "warning")}),
        (", runAsUser: 1000", ", runAsUser: 0", {("user-image-root", "error")}),
        ("sizeLimit: 16Gi", "sizeLimit: 1Gi", set()),
        ("sizeLimit: 16Gi", "sizeLimit: 512Mi", {("shm-missing", "error")}),
        ('{nvidia.com/gpu: "8", memory: 300Gi}', "{memory: 300Gi}, claims: [{name: gpus}]", set()),
        ("      startupProbe", "      x-startupProbe", {("probe-startup-missing", "error")}),
        (
            "failureThreshold: 900",
            "failureThreshold: abc, periodSeconds: 1e400",
            {("value-refused", "error")},
        ),
        ("failureThreshold: 900", 'failureThreshold: "900"', {("value-refused", "error")}),
        ("failureThreshold: 900", "failureThreshold: 2", {("probe-startup-short", "error")}),
        ("memory: 300Gi", "memory: 3Qi", {("value-refused", "error")}),
        ("memory: 300Gi", "memory: 300e9", set()),
        ("sizeLimit: 16Gi", "sizeLimit: 16GB", {("value-refused", "error")}),
        ("containerPort: 8000", "containerPort: http", {("value-refused", "error")}),
        (
            "readinessProbe: {httpGet: {path: /health",
            "readinessProbe: {httpGet: {path: /healthz",
            {("probe-path", "error")},
        ),
        ("name: vllm\n", "name: v\n      name: vllm\n", {("key-doubled", "warning")}),
    ],
)
def test_each_in_its_measure(tmp_path: Path, old: str, new: str, expected: set[tuple[str, str]]) -> None:
    assert old in POD
    assert lint_text(tmp_path, POD.replace(old, new))[1] == expected


def test_without_a_liveness_probe_nothing_ends_the_load(tmp_path: Path) -> None:
    text = POD.replace("      startupProbe", "      x-startupProbe").replace(
        "      liveness", "      x-liveness"
    )
    expected = {("probe-startup-missing", "warning"), ("probe-missing", "warning")}
    assert lint_text(tmp_path, text) == (0, expected)


def test_a_simulator_needs_no_gpus(tmp_path: Path) -> None:
    text = POD.replace("docker.io/vllm/vllm-openai:v0.32.0", "ghcr.io/llm-d/llm-d-inference-sim:v0.5.0")
    assert lint_text(tmp_path, text.replace('nvidia.com/gpu: "8", ', "")) == (0, set())


def test_tabs_before_comments_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    text = POD.replace("kind: Pod\n", "kind: Pod\t# a pod\n").replace("spec:\n", "spec:\t\n", 1)
    assert lint_text(tmp_path, text) == (0, set())


UNIT = """\
[Container]
Image=docker.io/vllm/vllm-openai:v0.32.0
AddDevice=nvidia.com/gpu=all
ShmSize=16g
SecurityLabelDisable=true
Volume=/srv/k2:/mnt/models:ro
PublishPort=127.0.0.1:8000:8000
Entrypoint=vllm
Exec=serve /mnt/models --tensor-parallel-size=8
[Service]
Restart=always
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("x", "x", set()),
        ("Restart=always", "Restart=on-failure", {("restart-missing", "error")}),
        ("Restart=always", "", {("restart-missing", "warning")}),
        ("SecurityLabelDisable=true\n", "", {("selinux-label", "warning")}),
        ("size=8", "size=8 --host=127.0.0.1", {("host-loopback", "error")}),
        ("size=8", "size=8 --swap-space=4", {("option-unknown", "error")}),
    ],
)
def test_units(tmp_path: Path, old: str, new: str, expected: set[tuple[str, str]]) -> None:
    assert lint_text(tmp_path, UNIT.replace(old, new), "k2.container")[1] == expected


def test_sizes_as_vllm_reads_them() -> None:
    texts = ("32k", "32K", "1.5k", "auto", "-1", "32768", "1.5K", "32kb", "", "k", "-5")
    assert [read_size(text) for text in texts] == [
        *(32000, 32768, 1500, -1, -1, 32768, None, None, None, None, None)
    ]


@pytest.mark.parametrize("size", ["$((GROUP * LOCAL))", "$((2 * (1 + 3)))", "$(cat /etc/size)", "`nproc`"])
def test_what_a_shell_computes_is_not_one(tmp_path: Path, size: str) -> None:
    """As in llm-d's guides: the size is not seen, so it is not judged, and a note says so."""
    script = (
        f"exec vllm serve m --port 8000 --max-model-len $(cat /len) --tensor-parallel-size {size} --seed 1"
    )
    command = POD.replace("[vllm, serve]", "[bash, -c]").replace(
        "[/mnt/models, --port=8000, --tensor-parallel-size=8]", json.dumps([script])
    )
    assert lint_text(tmp_path, command) == (0, {("not-judged", "note")})


def test_options_of_podman_are_judged(tmp_path: Path) -> None:
    podman = "podman run --device nvidia.com/gpu=0 --shm-size 8g --entrypoint vllm"
    run = f"{podman} vllm/vllm-openai:v0.32.0 serve m"
    assert lint_text(tmp_path, run + "\n", "serve.sh") == (0, set())
    found = lint_text(tmp_path, run + " --swap-space 4 --dtype int4\n", "serve.sh")
    assert found == (1, {("option-unknown", "error"), ("option-value", "error")})
    inner = run.replace("--entrypoint vllm ", "").replace(" serve m", " --model m --swap-space 4")
    assert lint_text(tmp_path, inner + "\n", "serve.sh") == (1, {("option-unknown", "error")})
