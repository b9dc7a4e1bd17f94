"""CRDs' OpenAPI schemas as JSON schemas, and what of an object does not fit them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.place import Document, Place
from moe4.errors import DeployError

KUBECTL_SECONDS = 60
KEPT = frozenset(("allOf", "anyOf", "oneOf", "type", "required", "enum", "pattern", "minimum", "maximum"))
LENGTHS = frozenset(("minLength", "maxLength", "minItems", "maxItems", "uniqueItems"))
# Every object may have these, whatever its schema says of them.
OPEN_FIELDS: dict[str, Any] = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {}}


class Schemas:
    """The CRDs of a folder, or of a cluster. A schema is read when an object needs it."""

    def __init__(self, crds: list[dict[str, Any]], folder: Path | None = None) -> None:
        self._crds = {_crd_key(crd): crd for crd in crds}
        self._files = _index(folder) if folder else {}
        self._ready: dict[tuple[str, str, str], Any] = {}

    def check(self, document: Document) -> Iterator[Finding]:
        """Yield what does not fit; nothing for a kind without a CRD here."""
        validator = self._validator(document.group, document.kind, document.version)
        if validator is None:
            return
        for error in validator.iter_errors(_plain(document.data)):
            place = Place(document=document, path=tuple(error.absolute_path))
            if error.validator == "additionalProperties":
                known = error.schema.get("properties", {})
                for field in (field for field in error.instance if field not in known):
                    why = f"{document.kind} has no field {field} here; it is dropped, or the object refused"
                    yield (place / field).find("schema-unknown-field", why, "remove it, or correct its name")
            else:
                yield place.find("schema", _short(error.message), f"see the schema of {document.kind}")

    def _validator(self, group: str, kind: str, version: str) -> Any:
        key = (group, kind, version)
        if key not in self._ready:
            self._ready[key] = self._build(*key)
        return self._ready[key]

    def _build(self, group: str, kind: str, version: str) -> Any:
        crd = self._crds.get((group, kind))
        if crd is None and (group, kind) in self._files:
            crd = _read_crd(self._files[group, kind])
        if crd is None:
            return None
        for entry in crd["spec"]["versions"]:
            if entry["name"] == version:
                schema = _convert(entry["schema"]["openAPIV3Schema"])
                if "properties" in schema:
                    schema["properties"] = {**schema["properties"], **OPEN_FIELDS}
                return jsonschema.Draft202012Validator(schema)
        return None


def read_schemas(folder: Path | None, from_cluster: bool) -> Schemas | None:
    """Return the CRDs of a folder and of the cluster kubectl speaks to; None if neither was asked for.

    Raises DeployError.
    """
    if folder is not None and not folder.is_dir():
        raise DeployError(f"--crds {folder} is not a folder of CRD files")
    if folder is None and not from_cluster:
        return None
    return Schemas(_cluster_crds() if from_cluster else [], folder)


def _cluster_crds() -> list[dict[str, Any]]:
    command = ["kubectl", "get", "crd", "-o", "json"]
    try:
        result = subprocess.run(command, capture_output=True, timeout=KUBECTL_SECONDS, check=False)
    except FileNotFoundError:
        raise DeployError("--cluster needs kubectl, which is not installed; use --crds FOLDER") from None
    except subprocess.TimeoutExpired:
        raise DeployError(f"`{' '.join(command)}` gave no answer in {KUBECTL_SECONDS} s") from None
    if result.returncode:
        reason = " ".join(result.stderr.decode(errors="replace").split())
        raise DeployError(f"`{' '.join(command)}` failed: {reason}")
    items: list[dict[str, Any]] = json.loads(result.stdout)["items"]
    return items


def _index(folder: Path) -> dict[tuple[str, str], Path]:
    """Return the file of each CRD by group and kind, from the head of the file alone."""
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        if "kind: CustomResourceDefinition" not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
            continue
        head = path.read_text(encoding="utf-8").partition("\n  versions:")[0]
        spec = yaml.safe_load(head)["spec"]
        found[spec["group"], spec["names"]["kind"]] = path
    if not found:
        raise DeployError(f"--crds {folder} holds no CustomResourceDefinition")
    return found


def _read_crd(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built
    try:
        crd: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        raise DeployError(f"{path} cannot be read as a CRD: {' '.join(str(error).split())}") from None
    return crd


def _crd_key(crd: dict[str, Any]) -> tuple[str, str]:
    return crd["spec"]["group"], crd["spec"]["names"]["kind"]


def _convert(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI v3 schema as JSON schema, closed against fields it does not name."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {name: _convert(item) for name, item in value.items()}
        elif key in ("items", "additionalProperties", "not"):
            found[key] = _convert(value) if isinstance(value, dict) else value
        elif key in KEPT or key in LENGTHS:
            found[key] = value
    if schema.get("nullable") and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get(
        "x-kubernetes-embedded-resource"
    )
    if "properties" in found and "additionalProperties" not in found and not open_ended:
        found["additionalProperties"] = False
    return found


def _plain(value: Any) -> Any:
    """Return ruamel's values as JSON's types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def _short(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:197]}..."
