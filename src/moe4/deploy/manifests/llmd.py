"""KServe's LLMInferenceService, which runs vLLM as llm-d does, behind its scheduler and gateway.

KServe merges what stands here into its own templates, container `main` and volumes by name: the command, the
probes' targets and the mounts are theirs.
"""

from moe4.deploy.manifests.documents import Manifest, Noted
from moe4.deploy.manifests.pods import environment, metadata, placement, probes, resources, shm_volume, user
from moe4.deploy.manifests.workload import Workload
from moe4.escape import dollars, shell_line

DEFAULT_IMAGE_NOTE = "KServe's template has llm-d's own image; this one replaces it"


def documents(workload: Workload) -> list[Manifest]:
    """Return the objects, an account that holds the hub's secret first if there is one."""
    service = _service(workload)
    options = workload.options
    if options.source.scheme == "hf" and options.hf_secret:
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(workload),
            "secrets": [{"name": options.hf_secret}],
        }
        return [account, service]
    return [service]


def _service(workload: Workload) -> Manifest:
    layout, several = workload.fit.layout, workload.fit.num_nodes > 1
    parallelism: Manifest = {"tensor": Noted(layout.tensor, "each matrix is split over so many GPUs")}
    if layout.data > 1:
        parallelism["data"] = Noted(layout.data, "copies of all but the routed experts, over all machines")
        parallelism["dataLocal"] = Noted(min(layout.data, workload.gpus), "of them in each machine")
    if layout.expert_parallel:
        parallelism["expert"] = Noted(True, "routed experts are split by number")
    spec: Manifest = {
        "model": {"uri": workload.options.source.uri, "name": workload.name},
        "replicas": 1,
        "rolloutStrategy": {
            "maxSurge": Noted(0, "two servers would need twice the GPUs"),
            "maxUnavailable": 1,
        },
        "parallelism": parallelism,
        "annotations": {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "8000",
            "prometheus.io/path": "/metrics",
        },
        "router": {"route": {}, "gateway": {}, "scheduler": {}},
        "template": _pod(workload),
    }
    if several:
        spec["worker"] = _pod(workload)
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": metadata(workload),
        "spec": spec,
    }


def _pod(workload: Workload) -> Manifest:
    options = workload.options
    additional = dollars(shell_line(item.text for item in workload.arguments))
    why = "; ".join(f"{item.flag}: {item.why}" for item in workload.arguments)
    variables = tuple(item for item in workload.variables if item.name not in ("HOME", "HF_TOKEN"))
    environ = [
        Noted({"name": "VLLM_ADDITIONAL_ARGS", "value": additional}, why),
        *environment(variables),
    ]
    container: Manifest = {
        "name": "main",
        "image": Noted(options.image_name, DEFAULT_IMAGE_NOTE),
        "env": environ,
        "resources": resources(workload),
        **probes(workload, handler=False),
    }
    if not options.openshift:
        container["securityContext"] = user(workload)
    pod: Manifest = {**placement(workload), "containers": [container]}
    if options.source.scheme == "hf" and options.hf_secret:
        pod["serviceAccountName"] = workload.name
    pod["volumes"] = [shm_volume(workload, "dshm")]
    return pod
