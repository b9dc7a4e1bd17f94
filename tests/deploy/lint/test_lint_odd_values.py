"""Lint reads what anybody may have written: a value of another type is a finding or nothing, no exception."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.lint.checks.needs import Context
from moe4.deploy.lint.place import Document, Place, mapping, whole
from moe4.deploy.lint.quantities import parse_quantity
from moe4.deploy.lint.run import fix_files, lint_files
from moe4.deploy.manifests.documents import parse
from moe4.errors import DeployError, Moe4Error

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    "",
    "x",
    "²",
    "9" * 5000,
    [],
    [None],
    {},
    {"x": []},
)
SERVICE = {"image": "vllm/vllm-openai:v1", "command": ["--port", "8000"], "shm_size": "1g", "mem_limit": "9g"}
GPUS = {"resources": {"reservations": {"devices": [{"count": 2, "capabilities": ["gpu"]}]}}}
POD = {
    "containers": [
        {
            "name": "main",
            "image": "vllm/vllm-openai:v1",
            "args": ["--port", "8000", "--tensor-parallel-size", "2"],
            "env": [{"name": "A", "value": "b"}],
            "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "9Gi"}},
            "securityContext": {"runAsUser": 1},
            "startupProbe": {
                "httpGet": {"path": "/health", "port": 8000},
                "periodSeconds": 10,
                "failureThreshold": 30,
                "initialDelaySeconds": 5,
            },
            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        }
    ],
    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}],
}
MANIFESTS: dict[str, dict[str, Any]] = {
    "compose": {"services": {"a": {**SERVICE, "environment": {"A": "b"}, "deploy": GPUS}}},
    "deployment": {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "a"},
        "spec": {"strategy": {"type": "Recreate"}, "template": {"spec": POD}},
    },
    "llmd": {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": {"name": "a"},
        "spec": {
            "model": {"uri": "hf://a/b"},
            "parallelism": {"data": 4, "dataLocal": 2, "expert": True},
            "template": POD,
            "worker": POD,
        },
    },
    "kserve": {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "a", "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {
            "predictor": {
                "model": {"modelFormat": {"name": "vLLM"}, "storageUri": "pvc://a/b", **POD["containers"][0]},
                "workerSpec": {"tensorParallelSize": 2, "pipelineParallelSize": 2, **POD},
            }
        },
    },
}


def paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in the data."""
    found = [path] if path else []
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        found += paths(node[key], (*path, key))
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_value_may_be_anything(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for place, path in enumerate(paths(MANIFESTS[name])):
        for number in range(place % 5, len(ODD), 5):  # three values a place; neighbours get others
            value = ODD[number]
            data = copy.deepcopy(MANIFESTS[name])
            node: Any = data
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            file.write_text(yaml.safe_dump(data, allow_unicode=True))
            result = CliRunner().invoke(app, ["lint", str(file), "--json"])
            assert result.exit_code in (0, 1, 3), (path, str(value)[:20], repr(result.exception))
            json.loads(result.stdout)
            if number < 5:  # one of them is mended, too
                result = CliRunner().invoke(app, ["lint", str(file), "--fix"])
                assert result.exit_code in (0, 1, 3), (path, str(value)[:20], repr(result.exception))


MENDED = {
    "requests": """\
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
        - image: vllm
          resources: {limits: {nvidia.com/gpu: 4}, requests: {nvidia.com/gpu: 2}}
""",
    "strategy": """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {annotations: {serving.kserve.io/deploymentMode: RawDeployment}}
spec: {predictor: {model: {runtime: a, storageUri: pvc://a/b}, workerSpec: {containers: []}}}
---
apiVersion: serving.kserve.io/v1beta1
kind: ServingRuntime
metadata: {name: a}
spec: {containers: [{image: vllm, resources: {limits: {nvidia.com/gpu: 2}}}]}
""",
}


@pytest.mark.parametrize("name", MENDED)
def test_what_is_mended_may_be_anything(name: str, tmp_path: Path) -> None:
    """Whatever stands where a repair writes, it is mended or left as it is."""
    file = tmp_path / "a.yaml"
    first, *others = yaml.safe_load_all(MENDED[name])
    for path in paths(first):
        for value in ODD:
            data = copy.deepcopy(first)
            node: Any = data
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            file.write_text(yaml.safe_dump_all([data, *others], allow_unicode=True))
            fix_files([file], Context(), None)
            lint_files([file], Context(), None)


def test_a_place_is_written_where_mappings_stand() -> None:
    def written(data: Any, *path: str | int) -> Any:
        write = Place(document=Document(file=Path("a.yaml"), data=data), path=path).writer("x")
        if write is None:
            return None
        write()
        return data

    assert written({"a": {"b": 1}}, "a", "b") == {"a": {"b": "x"}}
    assert written({}, "a", "b") == {"a": {"b": "x"}}
    assert written({"a": None}, "a", "b") == {"a": {"b": "x"}}
    assert written({"a": [{}]}, "a", 0, "b", "c") == {"a": [{"b": {"c": "x"}}]}
    for other in ([], "text", 1, True, [{}]):
        assert written({"a": other}, "a", "b") is None
        assert written({"a": other}, "a", "b", "c") is None
    assert written({"a": []}, "a", 0, "b") is None


@pytest.mark.parametrize(
    "text", ["{}", "[]", "---\n", "? x\n", "!!omap []\n", "!!set {}\n", "&a []\n", "!y a\n"]
)
def test_what_is_empty_has_a_place(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    for finding in lint_files([file], Context(), None):
        assert finding.line >= 1


def test_whole_numbers() -> None:
    assert [whole(value) for value in (0, 7, "7", "007")] == [0, 7, 7, 7]
    for value in (None, True, -1, 1.0, "-1", "1.5", "²", "٣", "", "1" * 5000, 10**30, [], {}):
        assert whole(value) is None


def test_mappings() -> None:
    assert mapping({"a": 1}) == {"a": 1}
    for value in (None, [], "x", 1):
        assert mapping(value) == {}


def test_quantities() -> None:
    assert parse_quantity("1.5Gi") == 3 << 29
    assert parse_quantity(".5Gi") == 1 << 29
    assert parse_quantity("9") == 9
    for text in ("", ".", "1.2.3", "9" * 400, "1e9", "-1", "²"):
        assert parse_quantity(text) is None


def test_nesting_is_bounded() -> None:
    assert parse("a: " + "[" * 60 + "]" * 60, "a.yaml")
    for text in ("[" * 5000, "a: " + "[" * 3000 + "]" * 3000, "{a: " * 3000, "- " * 3000 + "x"):
        with pytest.raises(
            DeployError, match=r"a\.yaml is not YAML that can be read: nested deeper than 64 levels"
        ):
            parse(text, "a.yaml")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("lines", "times", "why"),
    [
        (8, 9, r"it holds \d+ values, aliases counted"),
        (29, 9, "it holds"),
        (300, 1, "aliases nest it deeper"),
    ],
)
def test_aliases_are_not_unfolded(lines: int, times: int, why: str) -> None:
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * times)}]\n" for n in range(1, lines + 1))
    with pytest.raises(DeployError, match=why):
        parse(f"kind: LeaderWorkerSet\na0: &a0 [x]\n{bomb}", "a.yaml")
    assert parse("kind: X\na: &a [x, y]\nb: [*a, *a]\nc: &c\n  d: *c\n", "a.yaml")


@pytest.mark.parametrize("kind", ["pipe", "zeros", "sparse", "null characters", "folder", "missing"])
def test_what_is_no_text_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "a.sh"
    makers = {
        "pipe": lambda: os.mkfifo(file),
        "zeros": lambda: file.symlink_to("/dev/zero"),
        "sparse": lambda: (file.touch(), os.truncate(file, 1 << 40)),
        "null characters": lambda: file.write_bytes(b"\0" * 100_000),
        "folder": file.mkdir,
        "missing": lambda: None,
    }
    makers[kind]()
    result = CliRunner().invoke(app, ["lint", str(file)])
    assert isinstance(result.exception, Moe4Error)
    assert str(file) in str(result.exception)
