"""The parts of a pod that every Kubernetes form shares."""

from typing import Any

from moe4.deploy.manifests.documents import Manifest, Noted
from moe4.deploy.manifests.grammar import parse_toleration
from moe4.deploy.manifests.workload import CACHE_PATH, MODEL_PATH, PROBE_PERIOD, PodVariable, Workload
from moe4.escape import dollars

USER = 1000
CHECK_PATH, CHECK_FILE = "/opt/moe4", "check.py"
CHECK_PERIOD, CHECK_SECONDS = 30, 300


def resources(workload: Workload) -> Manifest:
    """Return requests and limits, GPUs in both."""
    memory = Noted(f"{workload.memory_gib}Gi", workload.memory_why)
    requests: Manifest = {"cpu": str(workload.cpus), "memory": memory}
    limits: Manifest = {"memory": f"{workload.memory_gib}Gi"}
    if workload.gpus:
        requests[workload.fit.device.resource] = Noted(str(workload.gpus), workload.gpus_why)
        limits[workload.fit.device.resource] = str(workload.gpus)
    return {"requests": requests, "limits": limits}


def environment(variables: tuple[PodVariable, ...]) -> list[Manifest]:
    """Return a container's variables."""
    entries: list[Manifest] = []
    for item in variables:
        if item.secret:
            reference = {"secretKeyRef": {"name": item.secret, "key": "token"}}
            entries.append({"name": Noted(item.name, item.why), "valueFrom": reference})
        else:
            entries.append({"name": item.name, "value": Noted(dollars(item.value or ""), item.why)})
    return entries


def arguments(workload: Workload) -> list[Noted]:
    """Return the server's options; Kubernetes would put variables into them."""
    return [Noted(dollars(item.text), item.why) for item in workload.arguments]


def probes(workload: Workload, handler: bool = True) -> Manifest:
    """Return start-up, readiness and liveness probes; without `handler` where a template has it."""
    target = {"httpGet": {"path": "/health", "port": workload.options.port}} if handler else {}
    startup = {"periodSeconds": PROBE_PERIOD, "failureThreshold": workload.failure_threshold}
    return {
        "startupProbe": _check_probe(workload) or {**target, **startup},
        "readinessProbe": {**target, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**target, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 5},
    }


def _check_probe(workload: Workload) -> Manifest:
    """Return the start-up probe that asks for the release's expected answers; nothing if none is wanted."""
    if workload.options.check_script is None:
        return {}
    tries = workload.startup_seconds // CHECK_PERIOD
    url = f"http://127.0.0.1:{workload.options.port}"
    command = ["python3", f"{CHECK_PATH}/{CHECK_FILE}", MODEL_PATH, url]
    return {
        "exec": {"command": Noted(command, "a server with wrong answers never becomes ready")},
        "periodSeconds": CHECK_PERIOD,
        "timeoutSeconds": Noted(CHECK_SECONDS, "of one check; while vLLM loads it ends at once"),
        "failureThreshold": Noted(tries, f"x {CHECK_PERIOD} s: as long as the start may take"),
    }


def check_script(workload: Workload) -> list[Manifest]:
    """Return the ConfigMap with the program that the start-up probe runs, if there is one."""
    if workload.options.check_script is None:
        return []
    data = {CHECK_FILE: workload.options.check_script}
    name = metadata(workload, f"{workload.name}-check")
    return [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": data}]


def check_volumes(workload: Workload) -> tuple[list[Manifest], list[Manifest]]:
    """Return the volume with the program, and its mount."""
    if workload.options.check_script is None:
        return [], []
    volume = {"name": "check", "configMap": {"name": f"{workload.name}-check"}}
    return [volume], [{"name": "check", "mountPath": CHECK_PATH, "readOnly": True}]


def security_context() -> Manifest:
    """Return a container's: no root, no rights."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def user(workload: Workload) -> Manifest:
    """Return a container's security context with a user; OpenShift chooses one itself."""
    context = security_context()
    if not workload.options.openshift:
        context["runAsUser"] = Noted(USER, "the image's own may be root; OpenShift wants none (--openshift)")
    return context


def user_note(workload: Workload) -> Manifest:
    """Return the annotation by which OpenShift's constraint that chooses a user is fixed."""
    why = "OpenShift chooses the user by this constraint"
    return {"openshift.io/required-scc": Noted("restricted-v2", why)} if workload.options.openshift else {}


def shm_volume(workload: Workload, name: str = "shm") -> Manifest:
    """Return the memory volume for /dev/shm."""
    size = Noted(f"{workload.shm_gib}Gi", workload.shm_why)
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def placement(workload: Workload) -> Manifest:
    """Return tolerations and node selector, if asked for."""
    options = workload.options
    found: Manifest = {}
    if options.tolerations:
        found["tolerations"] = [parse_toleration(text) for text in options.tolerations]
    if options.node_selector:
        found["nodeSelector"] = dict(options.node_selector)
    return found


def cache_claim(workload: Workload) -> Manifest:
    """Return the claim that keeps a download."""
    size = Noted(f"{workload.cache_gib}Gi", "the weights and a tenth more")
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(workload, cache_name(workload)),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }


def cache_name(workload: Workload) -> str:
    """Return the name of the claim that keeps a download."""
    return f"{workload.name}-cache"


def cache_mount() -> Manifest:
    """Return the mount of the claim that keeps a download."""
    return {"name": "cache", "mountPath": CACHE_PATH}


def metadata(workload: Workload, name: str | None = None, **more: Any) -> Manifest:
    """Return an object's metadata."""
    found: Manifest = {"name": name or workload.name}
    if workload.options.namespace:
        found["namespace"] = workload.options.namespace
    found["labels"] = {"app.kubernetes.io/name": workload.name}
    return {**found, **more}


def scrape_annotations(port: int) -> dict[str, str]:
    """Return what tells Prometheus to collect the metrics."""
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}
