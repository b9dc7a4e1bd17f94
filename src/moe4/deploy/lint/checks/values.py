"""Values that a cluster refuses, also by their shape, and keys that stand twice."""

import re
from collections.abc import Iterator

from moe4.deploy.lint.finding import Finding, Key
from moe4.deploy.lint.gather import pods_within
from moe4.deploy.lint.place import Document, Place, entries, get, mapping, whole
from moe4.deploy.lint.server import TEMPLATE
from moe4.deploy.manifests.documents import doubled_keys

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
COUNTS = ("periodSeconds", "failureThreshold", "initialDelaySeconds", "timeoutSeconds", "successThreshold")
# resource.Quantity of Kubernetes: a number, then a binary or decimal unit or an exponent.
QUANTITY = re.compile(
    r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?[0-9]+)?"
)
LISTS = ("command", "args", "env", "envFrom", "ports", "volumeMounts")  # of a container
MAPPINGS = ("resources", "securityContext", *PROBES)
POD_KINDS = ("Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob")
MAX_SHOWN = 60


def check_values(document: Document) -> Iterator[Finding]:
    """Yield keys that stand twice, and values in pods that the cluster refuses."""
    root = Place(document=document)
    yield from _doubled(root)
    if not document.kind:
        return
    yield from _shape(root / "metadata", dict)
    pods = pods_within(root)
    if not pods and document.kind in POD_KINDS:
        why = f"a {document.kind} needs a pod with a list of containers, and the cluster refuses it without"
        yield (root / "spec").find("value-refused", why, "give its pod a list of containers")
    for pod in pods:
        yield from _shape(pod / "volumes", list)
        for number in range(len(entries((pod / "containers").value))):
            yield from _shapes(pod / "containers" / number)
            yield from _container(pod / "containers" / number)
        for number, volume in enumerate(entries((pod / "volumes").value)):
            yield from _quantity(
                pod / "volumes" / number / "emptyDir" / "sizeLimit", get(volume, "emptyDir", "sizeLimit")
            )


def _doubled(root: Place) -> Iterator[Finding]:
    waiting: list[Place] = [root]
    while waiting:
        place = waiting.pop()
        value = place.value
        for key, at in doubled_keys(value).items():
            why = f"{key} stands twice: kubectl takes the last, other readers refuse the file"
            yield (place / key).find_at(at, "key-doubled", why, "keep one")
        keys: list[Key] = list(range(len(value))) if isinstance(value, list) else list(mapping(value))
        waiting += [place / key for key in keys if isinstance(get(value, key), dict | list)]


def _shapes(container: Place) -> Iterator[Finding]:
    """Yield the parts of a container that are lists, mappings or texts where others are wanted."""
    yield from _shape(container, dict)
    for name in LISTS:
        yield from _shape(container / name, list)
    for name in MAPPINGS:
        yield from _shape(container / name, dict)
    for side in ("requests", "limits"):
        yield from _shape(container / "resources" / side, dict)
    for number, item in enumerate(entries((container / "env").value)):
        value = get(item, "value")
        if value is not None and not isinstance(value, str):
            place = container / "env" / number / "value"
            why = f"{_shown(value)} is no text, and the cluster takes texts alone for variables"
            yield place.find("value-refused", why, f'write "{_shown(value)}"')


def _shape(place: Place, wanted: type) -> Iterator[Finding]:
    """Yield a value that is neither absent, open nor of the wanted type."""
    value = place.value
    if value is not None and not _is_open(value) and not isinstance(value, wanted):
        name = "list" if wanted is list else "mapping"
        why = f"{_shown(value)} is no {name}, and the cluster refuses the object"
        yield place.find("value-refused", why, f"write a {name}")


def _container(container: Place) -> Iterator[Finding]:
    for probe in PROBES:
        for name in COUNTS:
            count = (container / probe / name).value
            if count is not None and not _is_open(count) and (isinstance(count, str) or whole(count) is None):
                why = f"{name} is {_shown(count)}, and the cluster takes whole numbers alone"
                yield (container / probe / name).find("value-refused", why, "write a number without quotes")
    for number, port in enumerate(entries((container / "ports").value)):
        given = get(port, "containerPort")
        if given is not None and not _is_open(given) and not (isinstance(given, int) and 0 < given < 65536):
            place = container / "ports" / number / "containerPort"
            yield place.find("value-refused", f"{_shown(given)} is no port", "write a number from 1 to 65535")
    for side in ("requests", "limits"):
        for name, amount in mapping((container / "resources" / side).value).items():
            yield from _quantity(container / "resources" / side / str(name), amount)


def _quantity(place: Place, value: object) -> Iterator[Finding]:
    if value is None or _is_open(value):
        return
    text = str(value)
    if isinstance(value, bool | dict | list) or not QUANTITY.fullmatch(text):
        why = f"{_shown(value)} is no quantity, and the cluster refuses the object"
        yield place.find("value-refused", why, "write a number with a unit such as Gi, or none")


def _is_open(value: object) -> bool:
    """Say whether a template or a variable fills the value in."""
    return isinstance(value, str) and (TEMPLATE in value or "$" in value)


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
