"""What the lint did not look at, named: a file without findings is clean only where it was read."""

from collections.abc import Iterator
from pathlib import Path

from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.gather import KSERVE, RUNTIMES, WORKLOADS, pods_within
from moe4.deploy.lint.place import Document, Place, entries, get, mapping
from moe4.deploy.lint.server import TEMPLATE, DescribedServer, is_accelerator

SYSTEMD = (".service", ".kube", ".pod", ".volume", ".network", ".image", ".build", ".socket")
RENDER_HELM = "render it with `helm template` and lint what that prints"
RENDER_KUSTOMIZE = "render it with `kubectl kustomize` and lint what that prints"
# Kinds beside a server, in which no rule looks for anything.
NO_SERVER = frozenset(
    (
        *("ConfigMap", "Secret", "Namespace", "Service", "ServiceAccount", "Endpoints", "Event"),
        *("PersistentVolume", "PersistentVolumeClaim", "StorageClass", "VolumeSnapshot", "PriorityClass"),
        *("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "NetworkPolicy", "ResourceQuota"),
        *("Ingress", "IngressClass", "Route", "Gateway", "GatewayClass", "HTTPRoute", "GRPCRoute"),
        *("ReferenceGrant", "VirtualService", "DestinationRule", "ServiceEntry", "EnvoyFilter"),
        *("PodMonitor", "ServiceMonitor", "PrometheusRule", "HorizontalPodAutoscaler", "ScaledObject"),
        *("PodDisruptionBudget", "LimitRange", "ResourceClaim", "ResourceClaimTemplate", "DeviceClass"),
        *("InferencePool", "InferenceModel", "InferenceObjective", "ClusterStorageContainer"),
        *("CustomResourceDefinition", "SealedSecret", "ExternalSecret", "Certificate", "Issuer"),
        *("BackendTrafficPolicy", "HealthCheckPolicy", "GCPBackendPolicy", "LocalModelCache"),
    )
)


def unread(file: Path, why: str, fix: str, line: int = 1) -> Finding:
    """Return the finding that a file, or what begins at a line of it, was not looked at."""
    return Place(document=Document(file=file, start=(line, 1))).find("not-read", why, fix)


def refuse_file(file: Path, text: str) -> Finding | None:
    """Return why a file is not read at all, from its name and whether it is a template; None if it is."""
    if not text.strip():
        return unread(file, "the file is empty", "give the file that is deployed")
    if file.suffix in SYSTEMD:
        return unread(file, f"{file.suffix} units are not read", "give the .container unit")
    if file.suffix in (".tpl", ".gotmpl"):
        return unread(file, "a part of a Helm chart", RENDER_HELM)
    return None


def refuse_template(file: Path, text: str) -> Finding | None:
    """Return that a text which is no YAML is a template of it; None if it is none."""
    if TEMPLATE not in text:
        return None
    line = text[: text.index(TEMPLATE)].count("\n") + 1
    return unread(file, "a template, not YAML yet", RENDER_HELM, line)


def check_read(document: Document, servers: list[DescribedServer]) -> Iterator[Finding]:
    """Yield what a document holds and no rule looked at."""
    root = Place(document=document)
    if any(server.place.document is document for server in servers):
        return
    kind = document.kind
    if kind in ("Kustomization", "Component"):
        why = "a kustomization under another name than kustomization.yaml"
        yield root.find("not-read", why, RENDER_KUSTOMIZE)
    elif kind in ("HelmRelease", "HelmChart", "HelmChartConfig") or document.file.name == "values.yaml":
        why = "values of a Helm chart that is not among the files"
        yield root.find("not-read", why, f"give the chart too, or {RENDER_HELM}")
    elif "services" in mapping(document.data) and not kind:
        if not get(document.data, "services"):
            yield root.find("not-read", "the compose file has no service", "give the file that is deployed")
        yield from _unknown_program(root, list(mapping(get(document.data, "services")).values()))
    elif not kind:
        fix = "give manifests, compose files or units; " + RENDER_HELM
        yield root.find("not-read", "no Kubernetes object and no compose file", fix)
    elif kind not in NO_SERVER and kind not in RUNTIMES:
        pods = pods_within(root)
        known = kind in WORKLOADS or document.group in ("apps", "batch", KSERVE)
        if not pods and not known:
            yield root.find("not-read", f"{document.group} {kind} is not read".strip(), "check it yourself")
        for pod in pods:
            yield from _unknown_program(pod, entries((pod / "containers").value))


def _unknown_program(place: Place, containers: list[object]) -> Iterator[Finding]:
    """Yield that containers take GPUs, and what runs in them is not known to be vLLM."""
    for container in containers:
        resources = get(container, "resources")
        sides = [mapping(get(resources, side)) for side in ("requests", "limits")]
        takes = any(is_accelerator(str(name)) for side in sides for name in side)
        if takes or entries(get(container, "deploy", "resources", "reservations", "devices")):
            why = f"{get(container, 'image') or 'a container'} asks for GPUs, but may not run vLLM"
            yield place.find("not-read", why, "name `vllm serve` in its command, if that is what it runs")
