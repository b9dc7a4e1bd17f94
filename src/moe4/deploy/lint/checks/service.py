"""Services of Kubernetes that choose a server's pod, and the ports that they reach."""

from collections.abc import Iterator

from moe4.deploy.lint.checks.pod import listens_on
from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.place import Document, Place, entries, get, mapping, whole
from moe4.deploy.lint.server import DescribedServer


def check_services(documents: list[Document], servers: list[DescribedServer]) -> Iterator[Finding]:
    """Yield services whose ports do not lead to the server whose pod they choose."""
    for document in documents:
        if document.kind != "Service" or document.group:
            continue
        for server in servers:
            if _chooses(document, server):
                yield from _check_ports(document, server)


def _chooses(service: Document, server: DescribedServer) -> bool:
    """Say whether a service's selector fits the labels of the pod that a server is in."""
    selector = mapping(get(service.data, "spec", "selector"))
    if not selector or server.container is None or server.annotations is None or server.is_helper:
        return False
    labels = Place(document=server.annotations.document, path=(*server.annotations.path[:-1], "labels"))
    theirs = get(server.annotations.document.data, "metadata", "namespace")
    same = get(service.data, "metadata", "namespace") in (None, theirs) or theirs is None
    found = mapping(labels.value)
    return same and all(key in found and found[key] == value for key, value in selector.items())


def _check_ports(service: Document, server: DescribedServer) -> Iterator[Finding]:
    assert server.container is not None
    pod = Place(document=server.container.document, path=server.container.path[:-2])
    containers = [item for key in ("containers", "initContainers") for item in entries((pod / key).value)]
    ports = [port for container in containers for port in entries(get(container, "ports"))]
    named = {str(get(port, "name")): get(port, "containerPort") for port in ports if get(port, "name")}
    listening, reached = whole(listens_on(server)), list[object]()
    place = Place(document=service, path=("spec", "ports"))
    for number, port in enumerate(entries(place.value)):
        target = get(port, "targetPort")
        target = get(port, "port") if target is None else target
        is_name = isinstance(target, str) and whole(target) is None and not {"{", "$"} & set(target)
        if is_name and target not in named and not server.partial:
            known = ", ".join(named) or "none"
            why = f"no container of the pod has a port named {target}; named ports: {known}"
            fix = f"name the container's port, or write {listening or 8000}"
            yield (place / number).find("service-port", why, fix)
        reached.append(named.get(target, None if is_name else target) if isinstance(target, str) else target)
    numbers = [whole(port) for port in reached]
    if listening is None or None in numbers or len(containers) > 1 or not numbers or listening in numbers:
        return
    why = f"it leads to port {', '.join(map(str, numbers))}, the server listens on {listening}"
    yield place.find("service-port", why, f"write targetPort: {listening}")
