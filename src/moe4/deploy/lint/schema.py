"""CRDs' OpenAPI schemas as JSON schemas, and what of an object does not fit them."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from pydantic import Field

from moe4.arguments import argument
from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.place import Document, Place
from moe4.errors import CheckpointError, DeployError
from moe4.escape import visible
from moe4.files.regular import read_text
from moe4.schema import Foreign, parse

KUBECTL_SECONDS = 60
KEPT = frozenset(("allOf", "anyOf", "oneOf", "type", "required", "enum", "pattern", "minimum", "maximum"))
LENGTHS = frozenset(("minLength", "maxLength", "minItems", "maxItems", "uniqueItems"))
# Every object may have these, whatever its schema says of them.
OPEN_FIELDS: dict[str, Any] = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {}}


class _Names(Foreign):
    kind: str


class _Head(Foreign):
    group: str
    names: _Names


class _Schema(Foreign):
    document: dict[str, Any] | None = Field(None, alias="openAPIV3Schema")


class _Version(Foreign):
    name: str
    holder: _Schema | None = Field(None, alias="schema")


class _Spec(_Head):
    versions: list[_Version]


class _Crd(Foreign):
    """A CustomResourceDefinition, as far as anything here reads it."""

    spec: _Spec


class _CrdHead(Foreign):
    """What stands before a CRD's versions."""

    spec: _Head


class _Cluster(Foreign):
    """What `kubectl get crd -o json` prints."""

    items: list[_Crd]


class Schemas:
    """The CRDs of a folder, or of a cluster. A schema is read when an object needs it."""

    def __init__(self, crds: list[_Crd], folder: Path | None = None) -> None:
        self._crds = {(crd.spec.group, crd.spec.names.kind): crd for crd in crds}
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
                    why = f"{document.kind} has no field {field} here; a cluster drops it or refuses"
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
        for entry in crd.spec.versions:
            if entry.name == version and entry.holder is not None and entry.holder.document is not None:
                return _validator(entry.holder.document, f"the CRD of {group}/{version} {kind}")
        return None


def read_schemas(folder: Path | None, from_cluster: bool) -> Schemas | None:
    """Return the CRDs of a folder and of the cluster kubectl speaks to; None if neither was asked for.

    Raises DeployError.
    """
    if folder is not None and not folder.is_dir():
        raise DeployError(f"{argument('crds', folder)} is not a folder of CRD files")
    if folder is None and not from_cluster:
        return None
    return Schemas(_cluster_crds() if from_cluster else [], folder)


def _cluster_crds() -> list[_Crd]:
    command = ["kubectl", "get", "crd", "-o", "json"]
    try:
        result = subprocess.run(command, capture_output=True, timeout=KUBECTL_SECONDS, check=False)
    except FileNotFoundError:
        raise DeployError(
            f"{argument('cluster')} needs kubectl, which is not installed; use {argument('crds', 'FOLDER')}"
        ) from None
    except subprocess.TimeoutExpired:
        raise DeployError(f"`{' '.join(command)}` gave no answer in {KUBECTL_SECONDS} s") from None
    if result.returncode:
        reason = " ".join(result.stderr.decode(errors="replace").split())
        raise DeployError(f"`{' '.join(command)}` failed: {reason}")
    where = f"`{' '.join(command)}`"
    try:
        found = json.loads(result.stdout)
    except (ValueError, RecursionError) as error:
        raise DeployError(visible(f"{where} printed no JSON: {error}")) from None
    return parse(_Cluster, found, where, DeployError).items


def _index(folder: Path) -> dict[tuple[str, str], Path]:
    """Return the file of each CRD by group and kind, from the head of the file alone."""
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        if not path.is_file():
            continue
        text = _read(path)
        if "kind: CustomResourceDefinition" not in text[:2000]:
            continue
        head = _load(text.partition("\n  versions:")[0], path)
        spec = parse(_CrdHead, head, path, DeployError).spec
        found[spec.group, spec.names.kind] = path
    if not found:
        raise DeployError(f"{argument('crds', folder)} contains no CustomResourceDefinition")
    return found


def _read_crd(path: Path) -> _Crd:
    return parse(_Crd, _load(_read(path), path), path, DeployError)


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except CheckpointError as error:
        raise DeployError(str(error)) from None


def _load(text: str, path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DeployError(f"{path} cannot be read as a CRD: {' '.join(str(error).split())}") from None


def _validator(document: dict[str, Any], where: str) -> Any:
    """Return what validates objects against a CRD's schema. Raises DeployError for one that is none."""
    try:
        schema = _convert(document)
        if "properties" in schema:
            schema["properties"] = {**schema["properties"], **OPEN_FIELDS}
        # An older draft than today's, which says the same of what is kept and is checked five times as fast.
        jsonschema.Draft7Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        reason = error.message if isinstance(error, jsonschema.SchemaError) else "it is nested too deeply"
        raise DeployError(f"{where} has an invalid schema: {_short(visible(reason))}") from None
    return jsonschema.Draft7Validator(schema)


def _convert(schema: Any) -> Any:
    """Return an OpenAPI v3 schema as JSON schema, closed against fields it does not name."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            found[key] = {str(name): _convert(item) for name, item in value.items()}
        elif key in ("items", "additionalProperties", "not"):
            found[key] = _convert(value)
        elif key in KEPT or key in LENGTHS:
            found[key] = value
    if not _is_pattern(found.get("pattern", "")):
        del found["pattern"]
    if schema.get("nullable") and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get(
        "x-kubernetes-embedded-resource"
    )
    if "properties" in found and "additionalProperties" not in found and not open_ended:
        found["additionalProperties"] = False
    return found


def _is_pattern(text: Any) -> bool:
    """Say whether Python can match a pattern; some of Go's it cannot, and those are left out."""
    try:
        return not isinstance(text, str) or bool(re.compile(text))
    except (re.error, OverflowError, RecursionError):
        return False


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
