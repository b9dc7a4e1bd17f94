"""From parsed documents to the servers they describe."""

from collections.abc import Iterator
from typing import Any

from moe4.deploy.lint.place import Document, Place, entries, get, mapping, whole
from moe4.deploy.lint.server import DescribedServer, read_container, split_words
from moe4.vllm_facts import flags

KSERVE = "serving.kserve.io"
RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
WORKLOADS = ("Deployment", "StatefulSet", "Pod")


def gather(documents: list[Document]) -> list[DescribedServer]:
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


def _workload(document: Document) -> Iterator[DescribedServer]:
    spec = Place(document=document, path=("spec",))
    pod = spec if document.kind == "Pod" else spec / "template" / "spec"
    for number, container in enumerate(entries((pod / "containers").value)):
        place = pod / "containers" / number
        if not looks_like_vllm(container):
            continue
        server = DescribedServer(place=place, kind=document.kind, flags_place=place)
        if (pod / "securityContext").value is not None:
            server.security.append(pod / "securityContext")
        read_container(server, place, pod / "volumes")
        server.strategy = spec / "strategy" if document.kind == "Deployment" else None
        yield server


def _runtime(document: Document, service: Document | None) -> DescribedServer:
    spec = Place(document=document, path=("spec",))
    kinds = document.kind if service is None else "InferenceService"
    server = DescribedServer(place=spec, kind=kinds, flags_place=spec / "containers")
    server.partial = service is None  # the service may give resources, options and probes
    for number, container in enumerate(entries((spec / "containers").value)):
        if get(container, "name") == "kserve-container" or len(entries((spec / "containers").value)) == 1:
            server.place = spec / "containers" / number
            read_container(server, server.place, spec / "volumes")
    if (spec / "workerSpec").value is not None:
        _read_worker(server, spec / "workerSpec")
    return server


def _inference_service(document: Document, runtime: Document | None) -> DescribedServer:
    predictor = Place(document=document, path=("spec", "predictor"))
    if runtime is not None:
        server = _runtime(runtime, document)
    else:
        server = DescribedServer(place=predictor, kind="InferenceService", flags_place=predictor)
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


def _read_worker(server: DescribedServer, worker: Place) -> None:
    for what in ("tensor", "pipeline"):
        value = whole((worker / f"{what}ParallelSize").value)
        if value is not None:
            server.sizes[what] = value
    server.nodes = server.sizes.get("pipeline", 1)


def _llm_service(document: Document) -> Iterator[DescribedServer]:
    spec = Place(document=document, path=("spec",))
    sizes = mapping((spec / "parallelism").value)
    for part in ("template", "worker"):
        pod = spec / part
        if pod.value is None and part == "worker":
            continue
        server = DescribedServer(
            place=pod if pod.value is not None else spec, kind=document.kind, flags_place=pod
        )
        server.templated = True
        server.model_images = [spec / "model" / "uri"] if part == "template" else []
        for number, container in enumerate(entries((pod / "containers").value)):
            if get(container, "name") == "main":
                server.place = pod / "containers" / number
                read_container(server, server.place, pod / "volumes")
        for what in ("tensor", "pipeline", "data"):
            size = whole(sizes.get(what))
            if size is not None:
                server.sizes[what] = size
        if sizes.get("expert"):
            server.flags[flags.EXPERT_PARALLEL] = ("", spec / "parallelism" / "expert")
        local = whole(sizes.get("dataLocal"))
        if local and "data" in server.sizes:
            server.nodes = server.sizes["data"] // local
        if (spec / "worker").value is not None and server.sizes.get("pipeline", 1) > 1:
            server.nodes = server.sizes["pipeline"]
        yield server


def _compose(document: Document) -> Iterator[DescribedServer]:
    for name, service in mapping(get(document.data, "services")).items():
        place = Place(document=document, path=("services", str(name)))
        if not looks_like_vllm(service):
            continue
        server = DescribedServer(place=place, kind="compose", flags_place=place / "command", on_host=True)
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
                server.num_gpus = 0 if server.all_gpus else whole(count) or 0
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
