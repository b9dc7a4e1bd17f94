"""KServe: a ServingRuntime and an InferenceService in Standard mode, on one machine or several."""

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
    shm_volume,
    user,
)
from moe4.deploy.manifests.workload import Workload
from moe4.escape import dollars, shell_line, shell_word

FORMAT = "vLLM"
RAY_PORT = 6379
HEAD = """\
ray start --head --port={port} --disable-usage-stats --include-dashboard=false
exec {command} {model} "--tensor-parallel-size=${{TENSOR_PARALLEL_SIZE}}" \\
  "--pipeline-parallel-size=${{PIPELINE_PARALLEL_SIZE}}" --distributed-executor-backend=ray "$@"
"""
WORKER = """\
head="${{HEAD_SVC}}.${{POD_NAMESPACE}}.svc.cluster.local:{port}"
until ray health-check --address "$head" >/dev/null 2>&1; do sleep 5; done
exec ray start --address="$head" --disable-usage-stats --block
"""


def documents(workload: Workload) -> list[dict[str, Any]]:
    """Return the objects, a claim for the download first if there is one."""
    found = [_runtime(workload), _service(workload)]
    return [cache_claim(workload), *found] if workload.options.source.scheme == "hf" else found


def _runtime(workload: Workload) -> dict[str, Any]:
    options = workload.options
    several = workload.fit.num_nodes > 1
    container: dict[str, Any] = {"name": "kserve-container", "image": options.image_name}
    if several:
        script = HEAD.format(
            port=RAY_PORT, command=shell_line(workload.command), model=shell_word(workload.model)
        )
        container["command"] = ["bash", "-c", Noted(script, "KServe sets the two sizes"), "vllm"]
        container["args"] = arguments(workload)
    else:
        container["command"] = list(workload.command)
        container["args"] = [dollars(workload.model), *arguments(workload)]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [shm_volume(workload)]
    if options.source.scheme == "hf":
        mounts.append(cache_mount())
        claim = {"claimName": cache_name(workload)}
        volumes.append({"name": "cache", "persistentVolumeClaim": claim})
    container |= {
        "env": environment(workload.variables),
        "ports": [{"containerPort": options.port, "protocol": "TCP"}],
        "resources": resources(workload),
        **probes(workload),
        "securityContext": user(workload),
        "volumeMounts": mounts,
    }
    spec: dict[str, Any] = {
        "annotations": {
            "prometheus.kserve.io/port": str(options.port),
            "prometheus.kserve.io/path": "/metrics",
        },
        "multiModel": False,
        "supportedModelFormats": [{"name": FORMAT, "autoSelect": False}],
        "containers": [container],
        "volumes": volumes,
        **placement(workload),
    }
    if several:
        spec["workerSpec"] = _worker(workload)
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata(workload, f"{workload.name}-runtime"),
        "spec": spec,
    }


def _worker(workload: Workload) -> dict[str, Any]:
    """Return the other machines' pods; KServe's webhook wants one container of this name."""
    layout = workload.fit.layout
    health = {
        "exec": {"command": ["bash", "-c", "ray status >/dev/null"]},
        "periodSeconds": 30,
        "timeoutSeconds": 30,
    }
    startup = {**health, "failureThreshold": Noted(workload.startup_seconds // 30, "x 30 s, as for the head")}
    names = (("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace"))
    fields = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in names]
    variables = tuple(item for item in workload.variables if item.name in ("HOME", "HF_HUB_OFFLINE"))
    container = {
        "name": "worker-container",
        "image": workload.options.image_name,
        "command": ["bash", "-c", Noted(WORKER.format(port=RAY_PORT), "KServe sets HEAD_SVC")],
        "env": [*environment(variables), *fields],
        "resources": resources(workload),
        "startupProbe": startup,
        "livenessProbe": {**health, "failureThreshold": 5},
        "securityContext": user(workload),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "tensorParallelSize": Noted(layout.tensor, "GPUs of each machine"),
        "pipelineParallelSize": Noted(layout.pipeline, "machines, the head counted"),
        "containers": [container],
        "volumes": [shm_volume(workload)],
        **placement(workload),
    }


def _service(workload: Workload) -> dict[str, Any]:
    options, layout = workload.options, workload.fit.layout
    annotations: dict[str, Any] = {
        "serving.kserve.io/deploymentMode": Noted("Standard", "Kubernetes objects, without Knative"),
        "serving.kserve.io/autoscalerClass": Noted(
            "none", "replicas of this size are not made by the minute"
        ),
        "serving.kserve.io/enable-prometheus-scraping": "true",
    }
    model: dict[str, Any] = {"modelFormat": {"name": FORMAT}, "runtime": f"{workload.name}-runtime"}
    if options.source.scheme != "hf":
        model["storageUri"] = options.source.uri
    predictor: dict[str, Any] = {
        "minReplicas": 1,
        "maxReplicas": 1,
        "deploymentStrategy": {"type": Noted("Recreate", "two servers would need twice the GPUs")},
        "automountServiceAccountToken": Noted(False, "the server does not talk to the cluster"),
        "model": model,
    }
    if not options.openshift:
        predictor["securityContext"] = {"fsGroup": Noted(1000, "the volumes belong to the server's group")}
    if workload.fit.num_nodes > 1:
        sizes = {"tensorParallelSize": layout.tensor, "pipelineParallelSize": layout.pipeline}
        predictor["workerSpec"] = sizes
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata(workload, annotations=annotations),
        "spec": {"predictor": predictor},
    }
