"""Public manifests as facts: what a lint looks at, without the text, and a manifest rebuilt from it."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from moe4.deploy.lint.command.commandline import SHELLS, split_script
from moe4.deploy.lint.recognize import STARTS

FACTS = Path(__file__).parent / "manifests.json"
Manifest = dict[str, Any]

# Keys that lead to pods, by which kinds differ.
STRUCTURE = frozenset(
    [
        "spec",
        "template",
        "predictor",
        "model",
        "runtime",
        "workerSpec",
        "leaderWorkerTemplate",
        "size",
        "leaderTemplate",
        "workerTemplate",
        "headGroupSpec",
        "workerGroupSpecs",
        "replicas",
        "rayClusterConfig",
        "rayClusterSpec",
        "roles",
        "roleSpec",
        "containers",
        "volumes",
        "parallelism",
        "tensor",
        "pipeline",
        "data",
        "dataLocal",
        "expert",
        "prefill",
        "worker",
        "strategy",
        "type",
        "rollingUpdate",
        "maxSurge",
        "deploymentStrategy",
        "securityContext",
        "runAsNonRoot",
        "runAsUser",
        "services",
        "objects",
        "items",
        "jobTemplate",
        "tensorParallelSize",
        "pipelineParallelSize",
        "canaryTrafficPercent",
        "uri",
        "storageUri",
        "deployment",
        "pod",
    ]
)
CONTAINER = frozenset(
    [
        "name",
        "image",
        "command",
        "args",
        "entrypoint",
        "env",
        "envFrom",
        "resources",
        "ports",
        "securityContext",
        "restart",
        "shm_size",
        "ipc",
        "mem_limit",
        "deploy",
        "devices",
        "gpus",
        "runtime",
        "environment",
        "healthcheck",
        "startupProbe",
        "readinessProbe",
        "livenessProbe",
        "volumeMounts",
    ]
)
KEPT_VARIABLES = re.compile(
    r"VLLM_(CPU_KVCACHE_SPACE|ADDITIONAL_ARGS|API_KEY)|.*(TOKEN|PASSWORD|SECRET|_KEY)"
)
USED = re.compile(r"\$[({]?(\w+)")
MADE_UP = "sk-made-up-0123456789abcdef"


def reduce_text(text: str) -> list[Manifest]:
    """Return the facts of each object of a manifest that holds a container."""
    documents = [reduce_document(item) for item in yaml.safe_load_all(text) if isinstance(item, dict)]
    return [
        document for document in documents if "containers" in json.dumps(document) or "services" in document
    ]


def reduce_document(document: Manifest) -> Manifest:
    """Return an object's kind and name, and what leads to its containers."""
    kept: Manifest = {}
    for key in ("apiVersion", "kind"):
        if key in document:
            kept[key] = document[key]
    if isinstance(document.get("metadata"), dict):
        kept["metadata"] = {"name": str(document["metadata"].get("name", "x"))}
    kept |= _reduce({key: value for key, value in document.items() if key not in kept})
    return kept


def _reduce(node: Any) -> Any:
    if isinstance(node, list):
        return [_reduce(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept: Manifest = {}
    for key, value in node.items():
        if key in ("containers", "services"):
            kept[key] = _containers(value)
        elif key == "volumes":
            kept[key] = (
                [_volume(item) for item in value if isinstance(item, dict)] if isinstance(value, list) else []
            )
        elif key == "objects" or (key == "items" and isinstance(value, list)):
            kept[key] = [reduce_document(item) for item in value]
        elif key == "model" and isinstance(value, dict) and "image" in value:
            kept[key] = _container(value)
        elif key in STRUCTURE:
            kept[key] = _reduce(value)
    return kept


def _containers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _container(item) for name, item in value.items() if isinstance(item, dict)}
    return [_container(item) for item in value if isinstance(item, dict)]


def _container(container: Manifest) -> Manifest:
    kept = {key: value for key, value in container.items() if key in CONTAINER}
    for key in ("command", "args", "entrypoint"):
        if isinstance(kept.get(key), str) and "\n" not in kept[key]:
            kept[key] = shlex.split(kept[key])  # as compose does
        if isinstance(kept.get(key), list):
            kept[key] = [_word(str(item)) for item in kept[key]]
    words = json.dumps([kept.get(key) for key in ("command", "args", "entrypoint")])
    used = set(USED.findall(words))
    if "env" in kept:
        kept["env"] = [_variable(item) for item in kept["env"] or () if _is_kept(str(item.get("name")), used)]
    environment = kept.get("environment")
    if isinstance(environment, dict):
        kept["environment"] = {
            name: _redacted(name, value) for name, value in environment.items() if _is_kept(name, used)
        }
    elif isinstance(environment, list):
        kept["environment"] = [item for item in environment if _is_kept(str(item).partition("=")[0], used)]
    mounts = [
        item
        for item in kept.pop("volumeMounts", None) or ()
        if str(item.get("mountPath")).startswith("/dev/shm")
    ]
    if mounts:
        kept["volumeMounts"] = [{key: item[key] for key in ("name", "mountPath")} for item in mounts]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if isinstance(kept.get(probe), dict) and "exec" in kept[probe]:
            kept[probe] = {**kept[probe], "exec": {"command": ["true"]}}
    kept.pop("healthcheck", None)
    return {key: value for key, value in kept.items() if value not in (None, [], {})}


def _word(text: str) -> str:
    """Return an argument; of a script, the commands that start vLLM alone."""
    if "\n" not in text and not STARTS.search(text):
        return text
    if not STARTS.search(text):
        return "true"
    found = [words for words in split_script(text) if STARTS.search(" ".join(words))]
    return "; ".join(join(words) for words in found) or text


def join(words: list[str]) -> str:
    """Join words for a shell, variables left open."""
    return " ".join(
        word if re.fullmatch(r"[\w@%+=:,./${}()-]+", word) else shlex.quote(word) for word in words
    )


def _is_kept(name: str, used: set[str]) -> bool:
    return name in used or KEPT_VARIABLES.fullmatch(name) is not None


def _variable(item: Manifest) -> Manifest:
    name = str(item["name"])
    return {"name": name, "value": _redacted(name, item["value"])} if "value" in item else {"name": name}


def _redacted(name: str, value: Any) -> Any:
    is_secret = re.search(r"(TOKEN|PASSWORD|SECRET|_KEY)$", name) is not None
    return MADE_UP if is_secret and isinstance(value, str) and value[:1] not in ("", *"$<{/") else value


def _volume(volume: Manifest) -> Manifest:
    return {key: volume[key] for key in ("name", "emptyDir") if key in volume}


def rebuild(documents: list[Manifest]) -> str:
    """Return a manifest with these facts."""
    return yaml.safe_dump_all(documents, sort_keys=False, width=4096)


def load() -> list[Manifest]:
    """Return all samples: id, repository, commit, path, faults, documents."""
    samples: list[Manifest] = json.loads(FACTS.read_text(encoding="utf-8"))
    return samples


def is_shell(words: list[Any]) -> bool:
    """Say whether a command is a shell's."""
    return bool(words) and str(words[0]).rpartition("/")[2] in SHELLS
