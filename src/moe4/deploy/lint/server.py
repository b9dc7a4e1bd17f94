"""One vLLM server, whatever kind of file describes it: what the rules look at."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moe4.deploy.lint.place import Document, Place, entries, get

GPU_SUFFIX = "/gpu"
# vLLM's short names and spellings, to the long one.
ALIASES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "--model_len": "--max-model-len",
}
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "m": 1}


@dataclass(kw_only=True, slots=True)
class Server:
    """A server's settings, each with its place. None: not given.

    gpus: in limits, or in requests if it stands only there; `all_gpus` where the machine's all are taken.
    templated: KServe's own templates give command, probes' targets, mounts and /dev/shm's mount.
    partial: a part stands in a file that is not seen, so that nothing can be called missing.
    by_moe4: moe4 serve starts vLLM, and adds its options.
    model_images: images with weights.
    container, volumes: where a volume could be added.
    nodes: machines of one replica.
    """

    place: Place
    kind: str
    images: list[Place] = field(default_factory=list)
    flags: dict[str, tuple[str, Place]] = field(default_factory=dict)
    flags_place: Place
    variables: dict[str, Place] = field(default_factory=dict)
    resources: Place | None = None
    shm: Place | None = None
    shm_size: str | None = None
    probes: dict[str, Place] = field(default_factory=dict)
    templated: bool = False
    partial: bool = False
    by_moe4: bool = False
    model_images: list[Place] = field(default_factory=list)
    container: Place | None = None
    volumes: Place | None = None
    nodes: int = 1
    on_host: bool = False
    all_gpus: bool = False
    num_gpus: int | None = None
    memory: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    strategy: Place | None = None
    security: list[Place] = field(default_factory=list)

    @property
    def gpus(self) -> int:
        """GPUs of one machine; 0 if none."""
        if self.num_gpus is not None:
            return self.num_gpus
        return max((amount for _, _, amount in self.gpu_amounts()), default=0)

    def gpu_amounts(self) -> Iterator[tuple[str, str, int]]:
        """Yield (`requests` or `limits`, resource, amount) of every GPU resource."""
        if self.resources is None:
            return
        for side in ("requests", "limits"):
            for name, amount in (get(self.resources.value, side) or {}).items():
                if str(name).endswith(GPU_SUFFIX) or "/mig-" in str(name):
                    yield side, str(name), int(amount) if str(amount).isdigit() else 0

    @property
    def memory_bytes(self) -> int | None:
        """Host memory in limits, else in requests."""
        if self.memory is not None:
            return parse_quantity(self.memory)
        for side in ("limits", "requests"):
            value = get(self.resources.value, side, "memory") if self.resources else None
            if value is not None:
                return parse_quantity(str(value))
        return None

    @property
    def is_cpu(self) -> bool:
        """Whether it is meant for a CPU."""
        return "VLLM_CPU_KVCACHE_SPACE" in self.variables or any(
            "cpu" in str(image.value).rpartition("/")[2] for image in self.images
        )

    def size(self, what: str) -> int:
        """Return a parallel size: `tensor`, `pipeline` or `data`; 1 if it is not given."""
        if what in self.sizes:
            return self.sizes[what]
        value = self.flags.get(f"--{what}-parallel-size")
        return int(value[0]) if value and value[0].isdigit() else 1

    @property
    def has_sizes(self) -> bool:
        """Whether any parallel size is given."""
        named = ("tensor", "pipeline", "data")
        return bool(self.sizes) or any(f"--{name}-parallel-size" in self.flags for name in named)

    def read_flags(self, words: list[tuple[str, Place]]) -> None:
        """Read vLLM's options from a command line."""
        self.by_moe4 = self.by_moe4 or any(word.rpartition("/")[2] == "moe4" for word, _ in words)
        waiting: str | None = None
        for word, place in words:
            if word.startswith("-") and len(word) > 1 and not word[1].isdigit():
                name, equals, value = word.partition("=")
                name = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
                waiting = ALIASES.get(name, name)
                self.flags[waiting] = (value, place)
                if equals:
                    waiting = None
            elif waiting is not None:
                self.flags[waiting] = (word, place)
                waiting = None


def read_container(server: Server, container: Place, volumes: Place) -> None:
    """Add what a container of a pod says; later containers win over earlier ones."""
    if server.container is None:
        server.container, server.volumes = container, volumes
    if (container / "image").value:
        server.images = [container / "image"]
    words: list[tuple[str, Place]] = []
    for key in ("command", "args"):
        place = container / key
        if place.value is not None:
            server.flags_place = place
        for number, item in enumerate(entries(place.value)):
            words += [(word, place / number) for word in split_words(str(item))]
    for number, item in enumerate(entries((container / "env").value)):
        name = str(get(item, "name"))
        server.variables[name] = container / "env" / number
        if name == "VLLM_ADDITIONAL_ARGS":
            place = container / "env" / number / "value"
            words += [(word, place) for word in split_words(str(place.value or ""))]
            server.flags_place = place
    server.read_flags(words)
    if (container / "resources").value is not None:
        server.resources = container / "resources"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if (container / probe).value is not None:
            server.probes[probe] = container / probe
    if (container / "securityContext").value is not None:
        server.security.append(container / "securityContext")
    mounted = {
        str(get(mount, "name"))
        for mount in entries((container / "volumeMounts").value)
        if str(get(mount, "mountPath")).rstrip("/") == "/dev/shm"
    }
    for number, volume in enumerate(entries(volumes.value)):
        if get(volume, "image", "reference"):
            server.model_images.append(volumes / number / "image" / "reference")
        in_memory = get(volume, "emptyDir", "medium") == "Memory"
        name = str(get(volume, "name"))
        if in_memory and (name in mounted or (server.templated and name == "dshm")):
            server.shm = volumes / number
            size = get(volume, "emptyDir", "sizeLimit")
            server.shm_size = str(size) if size is not None else None


def split_words(text: str) -> list[str]:
    """Split an argument, which may be a whole script, into words; comments go."""
    if "\n" not in text and " " not in text:
        return [text]
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def parse_quantity(text: str) -> int | None:
    """Return a Kubernetes or podman quantity in bytes; None if it is none."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text.strip())
    if not found:
        return None
    unit = (
        found[2]
        if found[2] in UNITS
        else {"g": "Gi", "gb": "Gi", "m": "Mi", "mb": "Mi"}.get(found[2].lower())
    )
    return int(float(found[1]) * UNITS[unit]) if unit is not None else None


def gather(documents: list[Document]) -> list[Server]:
    """Return the servers that the documents describe; a runtime goes with the service that names it."""
    runtimes = {document.name: document for document in documents if document.kind in RUNTIMES}
    used = set()
    servers = []
    for document in documents:
        if document.kind == "InferenceService" and document.group == KSERVE:
            name = str(get(document.data, "spec", "predictor", "model", "runtime") or "")
            used.add(name)
            servers.append(_inference_service(document, runtimes.get(name)))
        elif document.kind == "LLMInferenceService" and document.group == KSERVE:
            servers += _llm_service(document)
        elif document.kind in WORKLOADS:
            servers += _workload(document)
        elif isinstance(document.data, dict) and "services" in document.data and not document.kind:
            servers += _compose(document)
    for name, document in runtimes.items():
        if name not in used:
            servers.append(_runtime(document, None))
    return servers


KSERVE = "serving.kserve.io"
RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
WORKLOADS = ("Deployment", "StatefulSet", "Pod", "LeaderWorkerSet")


def _workload(document: Document) -> Iterator[Server]:
    spec = Place(document=document, path=("spec",))
    pod = spec if document.kind == "Pod" else spec / "template" / "spec"
    for number, container in enumerate(entries((pod / "containers").value)):
        place = pod / "containers" / number
        if not looks_like_vllm(container):
            continue
        server = Server(place=place, kind=document.kind, flags_place=place)
        if (pod / "securityContext").value is not None:
            server.security.append(pod / "securityContext")
        read_container(server, place, pod / "volumes")
        server.strategy = spec / "strategy" if document.kind == "Deployment" else None
        yield server


def _runtime(document: Document, service: Document | None) -> Server:
    spec = Place(document=document, path=("spec",))
    kinds = document.kind if service is None else "InferenceService"
    server = Server(place=spec, kind=kinds, flags_place=spec / "containers")
    server.partial = service is None  # the service may give resources, options and probes
    for number, container in enumerate(entries((spec / "containers").value)):
        if get(container, "name") == "kserve-container" or len(entries((spec / "containers").value)) == 1:
            server.place = spec / "containers" / number
            read_container(server, server.place, spec / "volumes")
    if (spec / "workerSpec").value is not None:
        _read_worker(server, spec / "workerSpec")
    return server


def _inference_service(document: Document, runtime: Document | None) -> Server:
    predictor = Place(document=document, path=("spec", "predictor"))
    if runtime is not None:
        server = _runtime(runtime, document)
    else:
        server = Server(place=predictor, kind="InferenceService", flags_place=predictor)
        server.partial = (predictor / "model").value is not None  # the rest stands in a runtime not seen
    server.place = predictor
    server.strategy = predictor / "deploymentStrategy"
    server.model_images = [predictor / "model" / "storageUri"]
    for place in (predictor / "model", predictor / "containers" / 0):
        if place.value is not None:
            read_container(server, place, predictor / "volumes")
    if (predictor / "workerSpec").value is not None:
        _read_worker(server, predictor / "workerSpec")
    return server


def _read_worker(server: Server, worker: Place) -> None:
    for what in ("tensor", "pipeline"):
        value = (worker / f"{what}ParallelSize").value
        if isinstance(value, int):
            server.sizes[what] = int(value)
    server.nodes = server.sizes.get("pipeline", 1)


def _llm_service(document: Document) -> Iterator[Server]:
    spec = Place(document=document, path=("spec",))
    sizes = (spec / "parallelism").value or {}
    for part in ("template", "worker"):
        pod = spec / part
        if pod.value is None and part == "worker":
            continue
        server = Server(place=pod if pod.value is not None else spec, kind=document.kind, flags_place=pod)
        server.templated = True
        server.model_images = [spec / "model" / "uri"] if part == "template" else []
        for number, container in enumerate(entries((pod / "containers").value)):
            if get(container, "name") == "main":
                server.place = pod / "containers" / number
                read_container(server, server.place, pod / "volumes")
        for what in ("tensor", "pipeline", "data"):
            if isinstance(sizes.get(what), int):
                server.sizes[what] = int(sizes[what])
        if sizes.get("expert"):
            server.flags["--enable-expert-parallel"] = ("", spec / "parallelism" / "expert")
        local = sizes.get("dataLocal")
        if isinstance(local, int) and local and "data" in server.sizes:
            server.nodes = server.sizes["data"] // int(local)
        if (spec / "worker").value is not None and server.sizes.get("pipeline", 1) > 1:
            server.nodes = server.sizes["pipeline"]
        yield server


def _compose(document: Document) -> Iterator[Server]:
    for name, service in (get(document.data, "services") or {}).items():
        place = Place(document=document, path=("services", str(name)))
        if not looks_like_vllm(service):
            continue
        server = Server(place=place, kind="compose", flags_place=place / "command", on_host=True)
        server.images = [place / "image"] if (place / "image").value else []
        words: list[tuple[str, Place]] = []
        for key in ("entrypoint", "command"):
            value = (place / key).value
            items = entries(value) or ([value] if isinstance(value, str) else [])
            for number, item in enumerate(items):
                at = place / key / number if entries(value) else place / key
                words += [(word, at) for word in split_words(str(item))]
        server.read_flags(words)
        environment = (place / "environment").value or {}
        if isinstance(environment, dict):
            for variable in environment:
                server.variables[str(variable)] = place / "environment" / str(variable)
        else:
            for number, item in enumerate(entries(environment)):
                server.variables[str(item).partition("=")[0]] = place / "environment" / number
        if get(service, "shm_size") is not None:
            server.shm, server.shm_size = place / "shm_size", str(get(service, "shm_size"))
        elif get(service, "ipc") == "host":
            server.shm, server.shm_size = place / "ipc", "host"
        if get(service, "mem_limit") is not None:
            server.memory = str(get(service, "mem_limit"))
        devices = get(service, "deploy", "resources", "reservations", "devices")
        for device in entries(devices):
            if "gpu" in entries(get(device, "capabilities")):
                count = get(device, "count")
                server.all_gpus = count in (None, "all", -1)
                server.num_gpus = 0 if server.all_gpus else int(count)
        if not devices:
            server.num_gpus = 0
        yield server


def looks_like_vllm(container: Any) -> bool:
    """Say whether a container runs vLLM, from its image and its command."""
    texts = [get(container, "image"), get(container, "name")]
    for key in ("command", "args", "entrypoint"):
        value = get(container, key)
        texts += entries(value) or [value]
    return any(mark in str(text) for text in texts for mark in ("vllm", "moe4", "rhaiis"))
