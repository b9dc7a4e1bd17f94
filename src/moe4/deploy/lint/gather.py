"""From parsed documents to the servers they describe."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from moe4.deploy.lint.command.commandline import SHELLS, Words, served_words
from moe4.deploy.lint.place import Document, Place, entries, get, mapping, whole
from moe4.deploy.lint.quadlet import DEVICE_FILES
from moe4.deploy.lint.recognize import looks_like_vllm
from moe4.deploy.lint.server import DescribedServer, is_accelerator, read_container, split_words
from moe4.vllm_facts import flags

KSERVE = "serving.kserve.io"
RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
WORKLOADS = ("Deployment", "StatefulSet", "Pod")
MAX_PODS = 64  # of one object
Configs = dict[str, Place]


def gather(documents: list[Document]) -> list[DescribedServer]:
    """Return the servers that the documents describe; a runtime goes with the service that names it."""
    runtimes = {document.name: document for document in documents if document.kind in RUNTIMES}
    configs = {
        document.name: Place(document=document, path=("data",))
        for document in documents
        if document.kind == "ConfigMap"
    }
    used = set()
    servers = []
    for document in documents:
        if document.kind == "InferenceService" and document.group == KSERVE:
            name = str(get(document.data, "spec", "predictor", "model", "runtime") or "")
            used.add(name)
            servers.append(_inference_service(document, runtimes.get(name), configs))
        elif document.kind == "LLMInferenceService" and document.group == KSERVE:
            servers += _llm_service(document, configs)
        elif document.kind in WORKLOADS:
            servers += _workload(document, configs)
        elif isinstance(document.data, dict) and "services" in document.data and not document.kind:
            servers += _compose(document)
        elif document.kind and document.kind not in RUNTIMES:
            servers += _any_pods(document, configs)
    for name, document in runtimes.items():
        if name not in used and any(map(looks_like_vllm, entries(get(document.data, "spec", "containers")))):
            servers.append(_runtime(document, None, configs))
    return [server for server in servers if not server.is_simulator]


def _workload(document: Document, configs: Configs) -> Iterator[DescribedServer]:
    spec = Place(document=document, path=("spec",))
    pod = spec if document.kind == "Pod" else spec / "template" / "spec"
    for server in _pod_servers(pod, configs):
        if _runs_something_else(server):
            continue
        server.strategy = spec / "strategy" if document.kind == "Deployment" else None
        yield server


def _runs_something_else(server: DescribedServer) -> bool:
    """Say whether the file names a program that is neither vLLM nor a script that may start it."""
    program = server.command[0][0].rpartition("/")[2] if server.has_program else "sh"
    return program not in SHELLS and not server.by_moe4 and served_words(server.command, False) is None


def _pod_servers(pod: Place, configs: Configs) -> Iterator[DescribedServer]:
    for number, container in enumerate(entries((pod / "containers").value)):
        place = pod / "containers" / number
        if not looks_like_vllm(container):
            continue
        server = DescribedServer(place=place, kind=pod.document.kind, flags_place=place)
        if (pod / "securityContext").value is not None:
            server.security.append(pod / "securityContext")
        read_container(server, place, pod / "volumes", configs)
        server.annotations = Place(document=pod.document, path=(*pod.path[:-1], "metadata", "annotations"))
        yield server


def _any_pods(document: Document, configs: Configs) -> Iterator[DescribedServer]:
    """Yield the servers of an object of any kind, wherever it holds a pod."""
    nodes = whole(get(document.data, "spec", "leaderWorkerTemplate", "size")) or 1
    for pod in pods_within(Place(document=document)):
        for server in _pod_servers(pod, configs):
            server.nodes, server.total_gpus = nodes, _ray_gpus(pod)
            starts = served_words(
                server.command, image_serves=not server.has_program and bool(server.command)
            )
            server.is_helper = starts is None and not server.by_moe4
            server.partial = document.group == KSERVE  # a base that services add to
            yield server


def _ray_gpus(pod: Place) -> int | None:
    """Return the GPUs of the Ray cluster that a pod is of; None if it is of none."""
    if not {"headGroupSpec", "workerGroupSpecs"} & set(pod.path):
        return None
    start = min(pod.path.index(key) for key in ("headGroupSpec", "workerGroupSpecs") if key in pod.path)
    cluster = Place(document=pod.document, path=pod.path[:start])
    total = _pod_gpus(cluster / "headGroupSpec" / "template" / "spec")
    for number, group in enumerate(entries((cluster / "workerGroupSpecs").value)):
        replicas = whole(get(group, "replicas"))
        worker = _pod_gpus(cluster / "workerGroupSpecs" / number / "template" / "spec")
        total += worker * (1 if replicas is None else replicas)
    return total


def _pod_gpus(pod: Place) -> int:
    """Return the GPUs that a pod's containers ask for."""
    total = 0
    for container in entries((pod / "containers").value):
        limits = mapping(get(container, "resources", "limits")) or mapping(
            get(container, "resources", "requests")
        )
        total += sum(whole(amount) or 0 for name, amount in limits.items() if is_accelerator(str(name)))
    return total


def pods_within(place: Place) -> list[Place]:
    """Return where an object has pods: mappings with a list of containers."""
    found, waiting = list[Place](), deque([place])
    while waiting and len(found) < MAX_PODS:
        here = waiting.popleft()
        value = here.value
        if isinstance(value, dict):
            if entries(value.get("containers")):
                found.append(here)
                continue
            waiting += [here / key for key in value if isinstance(key, str)]
        elif isinstance(value, list):
            waiting += [here / number for number in range(len(value))]
    return found


def _runtime(document: Document, service: Document | None, configs: Configs) -> DescribedServer:
    spec = Place(document=document, path=("spec",))
    kinds = document.kind if service is None else "InferenceService"
    server = DescribedServer(place=spec, kind=kinds, flags_place=spec / "containers")
    server.annotations = spec / "annotations"
    server.partial = service is None  # the service may give resources, options and probes
    for number, container in enumerate(entries((spec / "containers").value)):
        if get(container, "name") == "kserve-container" or len(entries((spec / "containers").value)) == 1:
            server.place = spec / "containers" / number
            read_container(server, server.place, spec / "volumes", configs)
    if (spec / "workerSpec").value is not None:
        _read_worker(server, spec / "workerSpec")
    return server


def _inference_service(document: Document, runtime: Document | None, configs: Configs) -> DescribedServer:
    predictor = Place(document=document, path=("spec", "predictor"))
    if runtime is not None:
        server = _runtime(runtime, document, configs)
    else:
        server = DescribedServer(place=predictor, kind="InferenceService", flags_place=predictor)
        server.partial = (predictor / "model").value is not None  # the rest stands in a runtime not seen
    server.place = predictor
    server.strategy = predictor / "deploymentStrategy"
    if (predictor / "annotations").value is not None:
        server.annotations = predictor / "annotations"
    server.model_images = [predictor / "model" / "storageUri"]
    for place in (predictor / "model", predictor / "containers" / 0):
        if place.value is not None:
            read_container(server, place, predictor / "volumes", configs)
    if (predictor / "workerSpec").value is not None:
        _read_worker(server, predictor / "workerSpec")
    return server


def _read_worker(server: DescribedServer, worker: Place) -> None:
    for what in ("tensor", "pipeline"):
        value = whole((worker / f"{what}ParallelSize").value)
        if value is not None:
            server.sizes[what] = value
    server.nodes = server.sizes.get("pipeline", 1)


def _llm_service(document: Document, configs: Configs) -> Iterator[DescribedServer]:
    spec = Place(document=document, path=("spec",))
    prefill = [spec / "prefill"] if (spec / "prefill").value is not None else []
    for half in (spec, *prefill):
        yield from _llm_pods(document, spec, half, configs)


def _llm_pods(document: Document, spec: Place, half: Place, configs: Configs) -> Iterator[DescribedServer]:
    """Yield the servers of a service's own pods, or of those that only read prompts."""
    sizes = mapping((half / "parallelism").value)
    for part in ("template", "worker"):
        pod = half / part
        if pod.value is None and part == "worker":
            continue
        server = DescribedServer(
            place=pod if pod.value is not None else half, kind=document.kind, flags_place=pod
        )
        server.templated = True
        server.model_images = [spec / "model" / "uri"] if part == "template" else []
        for number, container in enumerate(entries((pod / "containers").value)):
            if get(container, "name") == "main":
                server.place = pod / "containers" / number
                read_container(server, server.place, pod / "volumes", configs)
        for what in ("tensor", "pipeline", "data"):
            size = whole(sizes.get(what))
            if size is not None:
                server.sizes[what] = size
        if sizes.get("expert"):
            server.flags[flags.EXPERT_PARALLEL] = ("", half / "parallelism" / "expert")
        local = whole(sizes.get("dataLocal"))
        if local and "data" in server.sizes:
            server.nodes = server.sizes["data"] // local
        if (half / "worker").value is not None and server.sizes.get("pipeline", 1) > 1:
            server.nodes = server.sizes["pipeline"]
        yield server


def _compose(document: Document) -> Iterator[DescribedServer]:
    for name, service in mapping(get(document.data, "services")).items():
        place = Place(document=document, path=("services", str(name)))
        if not looks_like_vllm(service):
            continue
        server = DescribedServer(place=place, kind="compose", flags_place=place / "command", on_host=True)
        server.images = [place / "image"] if (place / "image").value else []
        words: Words = []
        for key in ("entrypoint", "command"):
            value = (place / key).value
            items = entries(value) or ([value] if isinstance(value, str) else [])
            for number, item in enumerate(items):
                at = place / key / number if entries(value) else place / key
                words += [(word, at) for word in split_words(str(item))]
                whole_item = [str(item)] if entries(value) else split_words(str(item))
                server.command += [(word, at) for word in whole_item]
        server.read_flags(words)
        server.has_program = (place / "entrypoint").value is not None
        server.published = bool((place / "ports").value)
        policy = get(service, "restart")
        server.restart = (str(policy or "no"), place / "restart" if policy else place)
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
        _compose_gpus(server, service)
        yield server


def _compose_gpus(server: DescribedServer, service: Any) -> None:
    """Read the accelerators of a service of compose, which has five ways to give them."""
    server.num_gpus = 0
    asked = entries(get(service, "deploy", "resources", "reservations", "devices")) + entries(
        get(service, "gpus")
    )
    for device in asked:
        ids, count = entries(get(device, "device_ids")), get(device, "count")
        unseen = isinstance(count, str) and "$" in count
        server.claims = server.claims or unseen
        server.all_gpus = server.all_gpus or (not ids and not unseen and count in (None, "all", -1))
        server.num_gpus += len(ids) or whole(count) or 0
    files = [str(item) for item in entries(get(service, "devices"))]
    cdi = [item for item in files if item.startswith("nvidia.com/gpu=")]
    server.num_gpus += sum(not item.endswith("=all") for item in cdi)
    server.all_gpus = server.all_gpus or get(service, "gpus") == "all" or len(cdi) > server.num_gpus
    given = any(item.startswith(DEVICE_FILES) for item in files) or get(service, "runtime") is not None
    server.claims = server.claims or (given and not asked)
