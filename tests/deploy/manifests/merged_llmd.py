"""An LLMInferenceService as KServe renders it: its own presets, with a strategic merge of the service's spec.

The presets hold what a service has to live with, in our words: KServe's
config/llmisvcconfig/config-llm-template.yaml and config-llm-worker-data-parallel.yaml (70e53e8), whose pods
differ in the command alone. `runAsNonRoot` is true in the charts and on OpenShift (kserve/kserve#5003,
opendatahub-io/kserve#1182), false in the files.
"""

from copy import deepcopy
from typing import Any

# Kubernetes' merge keys of the lists in a pod; every other list is replaced.
MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
}
HEAD = (
    'eval "vllm serve /mnt/models --served-model-name {name} --port 8000 {splits} '
    '${{VLLM_ADDITIONAL_ARGS}} $@"'
)
SPLITS = (
    "--api-server-count ${{VLLM_API_SERVER_COUNT:-8}} {expert} --tensor-parallel-size {tensor} "
    "--data-parallel-size {data} --data-parallel-size-local {local} "
    "--data-parallel-address $(LWS_LEADER_ADDRESS) --data-parallel-rpc-port 5555 "
    "--data-parallel-start-rank {rank} --trust-remote-code"
)


def merged(service: dict[str, Any], no_root: bool) -> dict[str, dict[str, Any]]:
    """Return the pods of a service, `template` and perhaps `worker`, as KServe has them started."""
    spec = service["spec"]
    return {
        part: merge(_preset(spec, part, no_root), spec[part])
        for part in ("template", "worker")
        if part in spec
    }


def merge(base: Any, patch: Any, key: str = "") -> Any:
    """Return `base` with a patch merged into it, as Kubernetes' strategic merge does."""
    if isinstance(base, dict) and isinstance(patch, dict):
        names = [*base, *(name for name in patch if name not in base)]
        return {name: merge(base.get(name), patch.get(name, base.get(name)), name) for name in names}
    if isinstance(base, list) and isinstance(patch, list) and key in MERGE_KEYS:
        by = MERGE_KEYS[key]
        items = {item[by]: item for item in base}
        for item in patch:
            items[item[by]] = merge(items.get(item[by]), item)
        return list(items.values())
    return deepcopy(patch)


def _preset(spec: dict[str, Any], part: str, no_root: bool) -> dict[str, Any]:
    sizes = spec["parallelism"]
    splits = f"--tensor-parallel-size {sizes['tensor']}"
    if "worker" in spec:
        splits = SPLITS.format(
            expert="--enable-expert-parallel" if sizes.get("expert") else "",
            tensor=sizes["tensor"],
            data=sizes["data"],
            local=sizes["dataLocal"],
            rank=0 if part == "template" else f"{sizes['dataLocal']} --headless",
        )
    command = HEAD.format(name=spec["model"]["name"], splits=splits)
    health = {"httpGet": {"path": "/health", "port": 8000, "scheme": "HTTP"}}
    container = {
        "image": "ghcr.io/llm-d/llm-d-cuda:v0.4.0",
        "name": "main",
        "ports": [{"containerPort": 8000, "protocol": "TCP"}],
        "command": ["/bin/bash", "-c", command, "--"],
        "env": [
            {"name": "HOME", "value": "/home"},
            {"name": "VLLM_LOGGING_LEVEL", "value": "INFO"},
            {"name": "HF_HUB_CACHE", "value": "/models"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": False,
            "runAsNonRoot": no_root,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "startupProbe": {**health, "initialDelaySeconds": 10, "periodSeconds": 10, "failureThreshold": 60},
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 3},
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "volumeMounts": [
            {"mountPath": "/home", "name": "home"},
            {"mountPath": "/dev/shm", "name": "dshm"},
            {"mountPath": "/models", "name": "model-cache"},
            {"mountPath": "/etc/ssl/certs", "name": "tls-certs", "readOnly": True},
        ],
    }
    return {
        "containers": [container],
        "terminationGracePeriodSeconds": 30,
        "volumes": [
            {"emptyDir": {}, "name": "home"},
            {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}, "name": "dshm"},
            {"emptyDir": {}, "name": "model-cache"},
            {"name": "tls-certs", "secret": {"secretName": "k2-kserve-self-signed-certs"}},
        ],
    }
