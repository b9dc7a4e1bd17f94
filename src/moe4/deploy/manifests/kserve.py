"""KServe: a ServingRuntime and an InferenceService in Standard mode, on one machine or several."""

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
    shm_volume,
    user,
    user_note,
)
from moe4.deploy.manifests.workload import Workload
from moe4.escape import dollars, shell_line, shell_word

FORMAT = "vLLM"
MASTER_PORT = 29501  # vLLM's own default
# With `multinode/executor-backend: mp` KServe starts one pod a pipeline stage.
HEAD = """\
exec {command} {model} "--tensor-parallel-size=${{TENSOR_PARALLEL_SIZE}}" \\
  "--pipeline-parallel-size=${{PIPELINE_PARALLEL_SIZE}}" --distributed-executor-backend=mp \\
  "--nnodes=${{PIPELINE_PARALLEL_SIZE}}" --node-rank=0 "--master-addr=${{POD_IP}}" --master-port={port} "$@"
"""
WORKER = """\
exec {command} {model} "--tensor-parallel-size=${{TENSOR_PARALLEL_SIZE}}" \\
  "--pipeline-parallel-size=${{PIPELINE_PARALLEL_SIZE}}" --distributed-executor-backend=mp --headless \\
  "--nnodes=${{PIPELINE_PARALLEL_SIZE}}" --node-rank=1 \\
  "--master-addr=${{HEAD_SVC}}.${{POD_NAMESPACE}}.svc.cluster.local" --master-port={port} "$@"
"""
HEALTH = 'exec curl --fail --silent "http://${{HEAD_SVC}}.${{POD_NAMESPACE}}.svc.cluster.local:{port}/health"'


def documents(workload: Workload) -> list[Manifest]:
    """Return the objects, a claim for the download first if there is one."""
    found = [*check_script(workload), _runtime(workload), _service(workload)]
    return [cache_claim(workload), *found] if workload.options.source.scheme == "hf" else found


def _runtime(workload: Workload) -> Manifest:
    options = workload.options
    several = workload.fit.num_nodes > 1
    container: Manifest = {"name": "kserve-container", "image": options.image_name}
    if several:
        container["command"] = _shell(workload, HEAD, "KServe sets the two sizes")
        container["args"] = arguments(workload)
    else:
        container["command"] = list(workload.command)
        container["args"] = [dollars(workload.model), *arguments(workload)]
    programs, program_mounts = check_volumes(workload)
    mounts: list[Manifest] = [{"name": "shm", "mountPath": "/dev/shm"}, *program_mounts]
    volumes = [shm_volume(workload), *programs]
    if options.source.scheme == "hf":
        mounts.append(cache_mount())
        claim = {"claimName": cache_name(workload)}
        volumes.append({"name": "cache", "persistentVolumeClaim": claim})
    container |= {
        "env": [*environment(workload.variables), *(_fields(POD_IP="status.podIP") if several else [])],
        "ports": [{"containerPort": options.port, "protocol": "TCP"}],
        "resources": resources(workload),
        **probes(workload),
        "securityContext": user(workload),
        "volumeMounts": mounts,
    }
    spec: Manifest = {
        "annotations": {
            "prometheus.kserve.io/port": str(options.port),
            "prometheus.kserve.io/path": "/metrics",
            **user_note(workload),
        },
        "multiModel": False,
        "supportedModelFormats": [{"name": FORMAT, "autoSelect": False}],
        "containers": [container],
        "volumes": volumes,
        **placement(workload),
    }
    backend: Manifest = {}
    if several:
        spec["workerSpec"] = _worker(workload)
        backend["annotations"] = {"multinode/executor-backend": Noted("mp", "the images have no Ray")}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata(workload, f"{workload.name}-runtime", **backend),
        "spec": spec,
    }


def _worker(workload: Workload) -> Manifest:
    """Return the other machines' pods; KServe's webhook wants one container of this name."""
    layout = workload.fit.layout
    check = HEALTH.format(port=workload.options.port)
    health = {"exec": {"command": ["bash", "-c", check]}, "periodSeconds": 30, "timeoutSeconds": 30}
    again = Noted(workload.startup_seconds // 30, "x 30 s, as for the head, which answers for both")
    variables = tuple(item for item in workload.variables if item.name in ("HOME", "HF_HUB_OFFLINE"))
    container = {
        "name": "worker-container",
        "image": workload.options.image_name,
        "command": _shell(workload, WORKER, "KServe sets the sizes and HEAD_SVC; it starts one worker"),
        "args": arguments(workload),
        "env": [*environment(variables), *_fields(POD_NAMESPACE="metadata.namespace")],
        "resources": resources(workload),
        "startupProbe": {**health, "failureThreshold": again},
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


def _shell(workload: Workload, script: str, why: str) -> list[Any]:
    """Return the command that runs a script, with the container's args as its own."""
    text = script.format(
        port=MASTER_PORT, command=shell_line(workload.command), model=shell_word(workload.model)
    )
    return ["bash", "-c", Noted(text, why), "vllm"]


def _fields(**paths: str) -> list[Manifest]:
    """Return variables with facts about the pod."""
    return [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()]


def _service(workload: Workload) -> Manifest:
    options, layout = workload.options, workload.fit.layout
    annotations: Manifest = {
        "serving.kserve.io/deploymentMode": Noted("Standard", "Kubernetes objects, without Knative"),
        "serving.kserve.io/autoscalerClass": Noted(
            "none", "replicas of this size are not made by the minute"
        ),
        "serving.kserve.io/enable-prometheus-scraping": "true",
    }
    model: Manifest = {"modelFormat": {"name": FORMAT}, "runtime": f"{workload.name}-runtime"}
    if options.source.scheme != "hf":
        model["storageUri"] = options.source.uri
    predictor: Manifest = {
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
