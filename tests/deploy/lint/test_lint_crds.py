"""CRDs are read as strictly as any file: one that is damaged is one line."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.lint.test_lint import lint
from deploy.lint.test_lint_odd_values import paths

from moe4.errors import DeployError

CRD = {
    "kind": "CustomResourceDefinition",
    "spec": {
        "group": "example.com",
        "names": {"kind": "Thing"},
        "versions": [
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "pattern": "a", "items": {"type": "string"}}
                        },
                    }
                },
            }
        ],
    },
}


@pytest.mark.parametrize("value", [None, 1, "x", [], [1], {}, {"x": 1}, "(?z", "*"])
def test_a_crd_may_hold_anything(tmp_path: Path, value: Any) -> None:
    """Every value of it in turn: findings or one line, never an exception of another kind."""
    crds = tmp_path / "crds"
    crds.mkdir()
    (tmp_path / "a.yaml").write_text("apiVersion: example.com/v1\nkind: Thing\nspec: {a: 1}\n")
    for path in paths(CRD):
        data = copy.deepcopy(CRD)
        node: Any = data
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        (crds / "crd.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        error = lint(tmp_path / "a.yaml", "--crds", crds).exception
        assert error is None or isinstance(error, DeployError | SystemExit), (path, repr(error))
        if isinstance(error, DeployError):
            assert "\n" not in str(error)


def test_a_folder_of_crds_may_hold_other_things(tmp_path: Path) -> None:
    crds = tmp_path / "crds"
    (crds / "folder.yaml").mkdir(parents=True)
    os.mkfifo(crds / "pipe.yaml")
    (crds / "list.yaml").write_text("- 1\n")
    (crds / "crd.yaml").write_text(yaml.safe_dump(CRD, sort_keys=False))
    (tmp_path / "a.yaml").write_text("apiVersion: example.com/v1\nkind: Thing\nspec: 1\n")
    found = json.loads(lint(tmp_path / "a.yaml", "--crds", crds, "--json").stdout)
    assert {item["rule"] for item in found} == {"schema", "not-read"}  # but for its schema
    (crds / "bytes.yaml").write_bytes(b"\xff\xfe")
    error = lint(tmp_path / "a.yaml", "--crds", crds).exception
    assert isinstance(error, DeployError)
    assert "bytes.yaml" in str(error)
