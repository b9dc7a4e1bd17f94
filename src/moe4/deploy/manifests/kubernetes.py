"""A plain Deployment, or a LeaderWorkerSet over several machines, and its Service."""

from typing import Any

from moe4.deploy.manifests.documents import Manifest, Noted
from moe4.deploy.manifests.pods import (
    arguments,
    cache_claim,
    cache_mount,
    cache_name,
    check_script,
    check_volumes,
    environment,
    metadata,
    placement,
    probes,
    resources,
    scrape_annotations,
    shm_volume,
    user,
    user_note,
)
from moe4.deploy.manifests.workload import MODEL_PATH, Workload
from moe4.escape import dollars

LWS_LABEL = "leaderworkerset.sigs.k8s.io"


def documents(workload: Workload) -> list[Manifest]:
    """Return the objects, a claim for the download first if there is one."""
    labels = {"app.kubernetes.io/name": workload.name}
    if workload.options.form == "leaderworkerset":
        selector = {f"{LWS_LABEL}/name": workload.name, f"{LWS_LABEL}/worker-index": "0"}
        found = [_leader_worker_set(workload, labels), _service(workload, selector)]
    else:
        found = [_deployment(workload, labels), _service(workload, labels)]
    found = [*check_script(workload), *found]
    return [cache_claim(workload), *found] if workload.options.source.scheme == "hf" else found


def _leader_worker_set(workload: Workload, labels: dict[str, str]) -> Manifest:
    """Return one group of pods, a machine each, whose vLLM processes find each other by LWS's variables."""
    nodes = workload.fit.num_nodes
    above = {"labels": labels, "annotations": _pod_notes(workload)}
    leader = {"metadata": above, "spec": _pod(workload)}
    group: Manifest = {
        "size": Noted(nodes, "machines, the leader counted"),
        "restartPolicy": Noted("RecreateGroupOnPodRestart", "vLLM's ranks start and end together"),
    }
    if nodes == 1:
        group["workerTemplate"] = leader  # where no leader's template is, its pod has the workers'
    else:
        group["leaderTemplate"] = leader
        others = {"labels": labels, "annotations": user_note(workload)}
        group["workerTemplate"] = {"metadata": others, "spec": _pod(workload, leads=False)}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(workload),
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {
                    "maxSurge": Noted(0, "two servers would need twice the GPUs"),
                    "maxUnavailable": 1,
                },
            },
            "leaderWorkerTemplate": group,
        },
    }


def _ranks(workload: Workload, leads: bool) -> list[Any]:
    """Return how a pod of several finds the others; Kubernetes puts LeaderWorkerSet's variables in."""
    if workload.fit.num_nodes == 1:
        return []
    words = [
        Noted("--distributed-executor-backend=mp", "the images have no Ray"),
        Noted("--nnodes=$(LWS_GROUP_SIZE)", "the set's size"),
        Noted("--node-rank=$(LWS_WORKER_INDEX)", "0 in the leader"),
        Noted("--master-addr=$(LWS_LEADER_ADDRESS)", "the leader's name in the cluster"),
    ]
    return words if leads else [*words, Noted("--headless", "the leader answers for all")]


def _pod_notes(workload: Workload) -> dict[str, str]:
    notes = scrape_annotations(workload.options.port)
    return {**notes, **user_note(workload)}


def _pod(workload: Workload, leads: bool = True) -> Manifest:
    """Return a pod: one that answers, or another rank of a LeaderWorkerSet."""
    options = workload.options
    volume, mount = _model_volume(workload)
    programs, mounts = check_volumes(workload) if leads else ([], [])
    container: Manifest = {
        "name": "vllm",
        "image": options.image_name,
        "command": list(workload.command),
        "args": [dollars(workload.model), *arguments(workload), *_ranks(workload, leads)],
        "env": environment(workload.variables),
        **({"ports": [{"name": "http", "containerPort": options.port}]} if leads else {}),
        "resources": resources(workload),
        **(probes(workload) if leads else {}),
        "securityContext": user(workload),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, mount, *mounts],
    }
    pod: Manifest = {
        "automountServiceAccountToken": Noted(False, "the server does not talk to the cluster"),
        "terminationGracePeriodSeconds": 60,
        **placement(workload),
    }
    if not options.openshift:
        pod["securityContext"] = {"fsGroup": Noted(1000, "the volumes belong to the server's group")}
    return pod | {"containers": [container], "volumes": [shm_volume(workload), volume, *programs]}


def _deployment(workload: Workload, labels: dict[str, str]) -> Manifest:
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
                "metadata": {"labels": labels, "annotations": _pod_notes(workload)},
                "spec": _pod(workload),
            },
        },
    }


def _service(workload: Workload, selector: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(workload),
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": workload.options.port, "targetPort": "http"}],
        },
    }


def _model_volume(workload: Workload) -> tuple[Manifest, Manifest]:
    """Return the volume with the weights and its mount."""
    source = workload.options.source
    if source.scheme == "hf":
        return {"name": "cache", "persistentVolumeClaim": {"claimName": cache_name(workload)}}, cache_mount()
    mount: Manifest = {"name": "model", "mountPath": MODEL_PATH, "readOnly": True}
    if source.scheme == "oci":
        reference = Noted(source.rest, "an image as a volume needs Kubernetes 1.33 or newer")
        return {"name": "model", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}, mount
    claim, path = source.claim
    if path:
        mount["subPath"] = path
    return {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}, mount
