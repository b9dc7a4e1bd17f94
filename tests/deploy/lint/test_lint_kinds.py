"""Kinds of small faults: variables of variables, values of another shape, services that lead nowhere."""

from pathlib import Path

import pytest
from deploy.lint.test_lint_knows import POD, lint_text

ARGS = "args: [/mnt/models, --port=8000, --tensor-parallel-size=8]"
MISMATCH = {("parallel-mismatch", "error")}
REFUSED = {("value-refused", "error")}
UNJUDGED = {("not-judged", "note")}


def env(*variables: str) -> str:
    return f"args: [/mnt/models, --tensor-parallel-size=$(TP)]\n      env: [{', '.join(variables)}]"


def script(text: str) -> str:
    return POD.replace("command: [vllm, serve]", "command: [/bin/sh, -c]").replace(ARGS, f"args: ['{text}']")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (['{name: N, value: "8"}', '{name: TP, value: "$(N)"}'], set()),
        (['{name: N, value: "4"}', '{name: TP, value: "$(N)"}'], MISMATCH),
        (['{name: TP, value: "$(ELSEWHERE)"}'], UNJUDGED),
        (['{name: TP, value: "$(N)"}', '{name: N, value: "$(TP)"}'], UNJUDGED),
        (['{name: TP, value: "8"}', "{name: X, value: 8}"], REFUSED),
        (['{name: TP, value: "8"}', "{name: X, value: true}"], REFUSED),
    ],
)
def test_variables_of_variables(tmp_path: Path, variables: list[str], expected: set[tuple[str, str]]) -> None:
    assert lint_text(tmp_path, POD.replace(ARGS, env(*variables)))[1] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("export TP=8 && exec vllm serve m --tensor-parallel-size $TP", set()),
        ("TP=4; vllm serve m --tensor-parallel-size=${TP}", MISMATCH),
        ("N=4; TP=$N; vllm serve m -tp $TP", MISMATCH),
        ("export A=1 TP=4\n\n        vllm serve m -tp $TP", MISMATCH),
        ("TP=$(nvidia-smi -L | wc -l); vllm serve m -tp $TP", UNJUDGED),
        ("if x; then TP=4; else TP=8; fi; vllm serve m -tp $TP", UNJUDGED),
        ("vllm serve m -tp $TP; TP=4", UNJUDGED),
        ("echo TP=4; vllm serve m -tp $TP", UNJUDGED),
    ],
)
def test_variables_of_a_script(tmp_path: Path, text: str, expected: set[tuple[str, str]]) -> None:
    assert lint_text(tmp_path, script(text))[1] == expected


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("/mnt/models, extra", True),
        ("serve, /mnt/models", True),
        ("/mnt/models, --enforce-eager, 'true'", True),
        ("/mnt/models, $(EXTRA)", False),
        ("/mnt/models, --lora-modules, a=b, c=d", False),
    ],
)
def test_a_second_model(tmp_path: Path, words: str, found: bool) -> None:
    text = POD.replace("[/mnt/models, --port=8000,", f"[--port=8000, {words},")
    assert (("option-unknown", "error") in lint_text(tmp_path, text)[1]) == found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ARGS, "args: --model /mnt/models -tp 8"),
        ("command: [vllm, serve]", "command: vllm serve"),
        (ARGS, f"{ARGS}\n      env: {{TP: 8}}"),
        ("ports: [{name: http, containerPort: 8000}]", "ports: {http: 8000}"),
        ("volumeMounts: [{name: shm, mountPath: /dev/shm}]", "volumeMounts: /dev/shm"),
        ("volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}]", "volumes: {shm: 16Gi}"),
        ("readinessProbe: {httpGet: {path: /health, port: 8000}}", "readinessProbe: [http]"),
        ('limits: {nvidia.com/gpu: "8", memory: 300Gi}', "limits: [8, 300Gi]"),
        ("metadata: {name: k2}", "metadata: [k2]"),
        ("  containers:\n    - name: vllm", "  containers:\n      vllm:"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, old: str, new: str) -> None:
    assert old in POD
    code, found = lint_text(tmp_path, POD.replace(old, new))
    assert code == 1 and ("value-refused", "error") in found


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "Job", "CronJob", "Pod"])
def test_a_workload_without_containers_is_not_clean(tmp_path: Path, kind: str) -> None:
    version = "batch/v1" if "Job" in kind else "v1" if kind == "Pod" else "apps/v1"
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n"
    assert lint_text(tmp_path, text) == (1, REFUSED)


@pytest.mark.parametrize(
    "text", ["kind: 5\n", "kind: List\nitems: {a: 1}\n", "kind: Wonder\n", "services:\n"]
)
def test_no_kind_that_is_known(tmp_path: Path, text: str) -> None:
    assert lint_text(tmp_path, f"x: 1\n{text}") == (3, {("not-read", "unread")})


SERVICE = """\
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {selector: {app: k2}, ports: [{port: 80, targetPort: http}]}
"""
LABELLED = POD.replace("{name: k2}", "{name: k2, labels: {app: k2, x: y}}") + SERVICE
LOST = {("service-port", "error")}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("targetPort: http", "targetPort: http", set()),
        ("targetPort: http", "targetPort: 8000", set()),
        ("targetPort: http", "targetPort: web", LOST),
        ("targetPort: http", "targetPort: 8001", LOST),
        (", targetPort: http", "", LOST),
        ("port: 80, targetPort: http", "port: 8000", set()),
        ("targetPort: http", 'targetPort: "8000"', set()),
        ("{port: 80, targetPort: http}", "{port: 81, targetPort: 81}, {port: 80, targetPort: http}", set()),
        ("selector: {app: k2}", "selector: {app: other}", set()),
        ("containerPort: 8000", "containerPort: 8001", LOST),
    ],
)
def test_services_lead_to_the_server(
    tmp_path: Path, old: str, new: str, expected: set[tuple[str, str]]
) -> None:
    assert old in LABELLED
    found = lint_text(tmp_path, LABELLED.replace(old, new))[1]
    assert {item for item in found if item[0] != "probe-port"} == expected


COMPOSE = """\
services:
  k2:
    image: vllm/vllm-openai:v0.32.0
    ipc: host
    restart: always
    command: [--model, /models/k2, --tensor-parallel-size, "8"]
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all, capabilities: [gpu]}]}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ipc: host", "shm_size: 64m", {("shm-missing", "error")}),
        ("ipc: host", "shm_size: 16g", set()),
        ("services:\n", "services:\n  other: hello\n", {("file-unreadable", "error")}),
        ("services:\n", "services:\n  other:\n", {("file-unreadable", "error")}),
    ],
)
def test_compose_files(tmp_path: Path, old: str, new: str, expected: set[tuple[str, str]]) -> None:
    assert lint_text(tmp_path, COMPOSE.replace(old, new))[1] == expected


def test_a_line_that_is_no_entry_of_a_unit(tmp_path: Path) -> None:
    text = "[Container]\nImage=docker.io/vllm/vllm-openai:v0.32.0\nExec --model m\n"
    assert lint_text(tmp_path, text, "k2.container") == (1, {("file-unreadable", "error")})
