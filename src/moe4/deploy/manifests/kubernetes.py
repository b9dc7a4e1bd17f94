"""A plain Deployment and its Service."""

from typing import Any

from moe4.deploy.manifests.documents import Noted
from moe4.deploy.manifests.pods import (
    arguments,
    cache_claim,
    cache_mount,
    cache_name,
    environment,
    metadata,
    placement,
    probes,
    resources,
    scrape_annotations,
    shm_volume,
    user,
)
from moe4.deploy.manifests.workload import MODEL_PATH, Workload
from moe4.escape import dollars


def documents(workload: Workload) -> list[dict[str, Any]]:
    """Return the objects, a claim for the download first if there is one."""
    found = [_deployment(workload), _service(workload)]
    return [cache_claim(workload), *found] if workload.options.source.scheme == "hf" else found


def _deployment(workload: Workload) -> dict[str, Any]:
    options = workload.options
    labels = {"app.kubernetes.io/name": workload.name}
    volume, mount = _model_volume(workload)
    container: dict[str, Any] = {
        "name": "vllm",
        "image": options.image_name,
        "command": list(workload.command),
        "args": [dollars(workload.model), *arguments(workload)],
        "env": environment(workload.variables),
        "ports": [{"name": "http", "containerPort": options.port}],
        "resources": resources(workload),
        **probes(workload),
        "securityContext": user(workload),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, mount],
    }
    pod: dict[str, Any] = {
        "automountServiceAccountToken": Noted(False, "the server does not talk to the cluster"),
        "terminationGracePeriodSeconds": 60,
        **placement(workload),
    }
    if not options.openshift:
        pod["securityContext"] = {"fsGroup": Noted(1000, "the volumes belong to the server's group")}
    pod |= {"containers": [container], "volumes": [shm_volume(workload), volume]}
    recreate = "two servers would need twice the GPUs" if workload.gpus else "two would need twice the memory"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(workload),
        "spec": {
            "replicas": 1,
            "strategy": {"type": Noted("Recreate", recreate)},
            "progressDeadlineSeconds": Noted(
                workload.startup_seconds + 600, "longer than the start may take"
            ),
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": scrape_annotations(options.port)},
                "spec": pod,
            },
        },
    }


def _service(workload: Workload) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(workload),
        "spec": {
            "selector": {"app.kubernetes.io/name": workload.name},
            "ports": [{"name": "http", "port": workload.options.port, "targetPort": "http"}],
        },
    }


def _model_volume(workload: Workload) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the volume with the weights and its mount."""
    source = workload.options.source
    if source.scheme == "hf":
        return {"name": "cache", "persistentVolumeClaim": {"claimName": cache_name(workload)}}, cache_mount()
    mount: dict[str, Any] = {"name": "model", "mountPath": MODEL_PATH, "readOnly": True}
    if source.scheme == "oci":
        reference = Noted(source.rest, "an image as a volume needs Kubernetes 1.33 or newer")
        return {"name": "model", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}, mount
    claim, path = source.claim
    if path:
        mount["subPath"] = path
    return {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}, mount
