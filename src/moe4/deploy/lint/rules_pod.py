"""What keeps a server running and safe: probes, images, strategy, user, secrets; KServe's own rules."""

import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml.comments import CommentedMap

from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.gather import KSERVE, RUNTIMES
from moe4.deploy.lint.place import Document, Place, entries, get, mapping, whole
from moe4.deploy.lint.rules import Context
from moe4.deploy.lint.server import DescribedServer
from moe4.deploy.sizing.fit import load_seconds
from moe4.vllm_facts import flags

STAGING = re.compile(r"(^|[./-])(stage|staging|preprod|brew|nightly)([./:-]|$)")
SECRET = re.compile(r"(^|_)(API_KEY|KEY|TOKEN|PASSWORD|SECRET)$")
DEPRECATED_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
TEMPLATE_STARTUP_SECONDS = 600  # of KServe's own templates for LLMInferenceService
MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
GPUS_IN_ENVIRONMENT = ("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE")


def check_running(server: DescribedServer, context: Context) -> Iterator[Finding]:
    """Yield what is wrong with a server's probes, images, strategy, user and secrets."""
    if not server.on_host:
        yield from _probes(server, context)
        yield from _user(server)
    yield from _images(server)
    yield from _strategy(server)
    yield from _secrets(server)


def _probes(server: DescribedServer, context: Context) -> Iterator[Finding]:
    startup = server.probes.get("startupProbe")
    load = load_seconds(context.release, context.disk) if context.release else None
    if server.partial and startup is None:
        return
    if startup is None:
        if server.templated and (load is None or load < TEMPLATE_STARTUP_SECONDS):
            return
        why = "loading takes minutes to an hour; without a start-up probe the pod is killed or never ready"
        if server.templated:
            why = f"KServe's template gives {TEMPLATE_STARTUP_SECONDS} s; the load alone takes {load:.0f} s"
        yield server.place.find(
            "probe-startup-missing", why, "add a startupProbe on /health with a failureThreshold that lasts"
        )
    else:
        yield from _startup_window(startup, context, load)
    for name in ("readinessProbe", "livenessProbe"):
        if name not in server.probes and not server.templated:
            why = f"there is no {name}: a server that hangs keeps getting requests"
            yield server.place.find("probe-missing", why, f"add a {name} on /health")
    port = server.value(flags.PORT) if flags.PORT in server.flags else "8000"
    for probe in server.probes.values():
        asked = get(probe.value, "httpGet", "port")
        if isinstance(asked, int) and whole(port) not in (None, asked) and not server.templated:
            why = f"the probe asks port {asked}, the server listens on {port}"
            yield (probe / "httpGet" / "port").find("probe-port", why, f"use {port}")


def _startup_window(startup: Place, context: Context, load: float | None) -> Iterator[Finding]:
    probe = startup.value
    period, failures = whole(get(probe, "periodSeconds")) or 10, whole(get(probe, "failureThreshold")) or 3
    window = period * failures + (whole(get(probe, "initialDelaySeconds")) or 0)
    if load is not None and context.release is not None and window < load:
        size = context.release.num_bytes / 1e9
        yield startup.find(
            "probe-startup-short",
            f"killed after {window} s; {size:.0f} GB take {load:.0f} s at {context.disk / 1e9:g} GB/s",
            f"raise failureThreshold to {int(2 * load + 600) // period + 1} or more",
        )


def _images(server: DescribedServer) -> Iterator[Finding]:
    for place in [*server.images, *server.model_images]:
        text = str(place.value or "")
        scheme, found, rest = text.partition("://")
        if place in server.model_images and found and scheme != "oci":
            continue
        image = rest if found else text
        if not image or image.startswith(("{{", "$")):
            continue
        name = image.rpartition("/")[2]
        if ("@" not in image and ":" not in name) or name.endswith(":latest"):
            why = f"{image} names no version: what runs changes by itself"
            yield place.find("image-untagged", why, "give a tag of a release, or a digest")
        registry = image.partition("/")[0]
        if STAGING.search(registry):
            why = f"{registry} is a registry for staging, closed to users and cleared at will"
            yield place.find("image-staging", why, "use the released image")


def _strategy(server: DescribedServer) -> Iterator[Finding]:
    if server.strategy is None or not (server.gpus or server.all_gpus):
        return
    if get(server.strategy.value, "type") != "Recreate":
        strategy = server.strategy
        yield strategy.find(
            "strategy-rolling",
            "an update starts the new server before the old one ends, and waits for GPUs that are taken",
            "set the strategy's type to Recreate",
            strategy.writer(CommentedMap({"type": "Recreate"})),
        )


def _user(server: DescribedServer) -> Iterator[Finding]:
    if server.templated or server.partial:
        return
    for place in server.security:
        context = mapping(place.value)
        if context.get("runAsNonRoot") or (
            isinstance(context.get("runAsUser"), int) and context["runAsUser"]
        ):
            return
    why = "nothing keeps the server from running as root"
    fix = "set runAsNonRoot, allowPrivilegeEscalation: false and drop all capabilities"
    yield server.place.find("user-root", why, fix)


def _secrets(server: DescribedServer) -> Iterator[Finding]:
    for name, place in server.variables.items():
        literal = server.variable(name)
        if SECRET.search(name) and literal and not literal.startswith(("$", "{{")):
            why = f"{name} stands in the file, for all who may read it"
            yield place.find("secret-inline", why, "take it from a secret")
    key = server.flags.get(flags.API_KEY)
    if key is not None and key[0] and not key[0].startswith("$"):
        why = "the API key stands in the file and in the list of processes"
        yield key[1].find("secret-inline", why, "give VLLM_API_KEY from a secret")


def check_object(document: Document) -> Iterator[Finding]:
    """Yield what compose and KServe's webhooks refuse or warn of, which the schemas do not show."""
    root = Place(document=document)
    services = (root / "services").value
    if services is not None and not document.kind and not isinstance(services, dict):
        why = "services of a compose file are a mapping of names to services"
        yield (root / "services").find("file-unreadable", why, "give each service its name")
    if document.group != KSERVE:
        return
    annotations = root / "metadata" / "annotations"
    mode = str((annotations / MODE).value or "")
    if mode in DEPRECATED_MODES:
        present = DEPRECATED_MODES[mode]
        yield (annotations / MODE).find(
            "mode-deprecated",
            f"{mode} is the old name of {present}, and will go",
            f"write {present}",
            (annotations / MODE).writer(present),
        )
    if document.kind == "InferenceService" and (root / "spec" / "predictor" / "workerSpec").value is not None:
        yield from _multinode_service(root)
    if document.kind in RUNTIMES and (root / "spec" / "workerSpec").value is not None:
        yield from _worker(root / "spec" / "workerSpec")
        for number, container in enumerate(entries((root / "spec" / "containers").value)):
            yield from _sizes_in_environment(root / "spec" / "containers" / number, container)
    if document.kind == "LLMInferenceService":
        for part in (root / "spec", root / "spec" / "prefill"):
            yield from _llm_parallelism(part)


def _multinode_service(root: Place) -> Iterator[Finding]:
    predictor, annotations = root / "spec" / "predictor", root / "metadata" / "annotations"
    uri = predictor / "model" / "storageUri"
    if str(uri.value or "").partition("://")[0] not in ("pvc", "oci"):
        why = f"the webhook refuses {uri.value or 'no storageUri'} with a workerSpec"
        yield uri.find("multinode-storage", why, "put the model on a PVC or into an OCI image")
    if (annotations / AUTOSCALER).value != "none":
        yield annotations.find(
            "multinode-autoscaler",
            f"with a workerSpec the webhook wants {AUTOSCALER}: none",
            "add the annotation",
            (annotations / AUTOSCALER).writer("none"),
        )
    if (predictor / "canaryTrafficPercent").value is not None:
        why = "the webhook refuses a canary with a workerSpec"
        yield (predictor / "canaryTrafficPercent").find("multinode-canary", why, "remove it")
    yield from _sizes_in_environment(predictor / "model", (predictor / "model").value)
    yield from _worker(predictor / "workerSpec")


def _sizes_in_environment(container: Place, value: Any) -> Iterator[Finding]:
    for number, item in enumerate(entries(get(value, "env"))):
        if get(item, "name") in GPUS_IN_ENVIRONMENT:
            why = f"the webhook refuses {get(item, 'name')} in the environment"
            fix = "set tensorParallelSize and pipelineParallelSize of the workerSpec"
            yield (container / "env" / number).find("multinode-env", why, fix)


def _worker(worker: Place) -> Iterator[Finding]:
    containers = entries((worker / "containers").value)
    if len(containers) > 1:
        why = "the webhook refuses more than one container in a workerSpec"
        yield (worker / "containers" / 1).find("multinode-worker", why, "keep worker-container alone")
    for number, container in enumerate(containers[:1]):
        if get(container, "name") != "worker-container":
            why = "KServe looks for a container named worker-container"
            yield (worker / "containers" / number).find("multinode-worker", why, "name it worker-container")
    for size in ("tensorParallelSize", "pipelineParallelSize"):
        value = (worker / size).value
        if isinstance(value, int) and value < 1:
            yield (worker / size).find("multinode-worker", f"{size} is below 1", "give 1 or more")


def _llm_parallelism(part: Place) -> Iterator[Finding]:
    place = part / "parallelism"
    sizes = mapping(place.value)
    data, local = sizes.get("data"), sizes.get("dataLocal")
    pipeline = sizes.get("pipeline")
    if (data is None) != (local is None):
        yield place.find("llmd-parallelism", "the webhook wants data and dataLocal together", "give both")
    elif isinstance(data, int) and isinstance(local, int) and local and data % local:
        why = f"data {data} is no multiple of dataLocal {local}"
        yield place.find("llmd-parallelism", why, "make every machine hold the same number")
    if pipeline is not None and data is not None:
        why = "the webhook refuses pipeline and data parallelism together"
        yield place.find("llmd-parallelism", why, "keep one of them")
    has_worker = (part / "worker").value is not None
    if has_worker and data is None and (whole(pipeline) or 0) <= 1:
        why = "the webhook refuses a worker without data or pipeline parallelism"
        yield (part / "worker").find("llmd-parallelism", why, "give data and dataLocal, or pipeline")
    if not has_worker and isinstance(data, int) and isinstance(local, int) and data > local:
        why = f"data {data} is more than the {local} of one machine, and there is no worker"
        yield place.find("llmd-parallelism", why, "add a worker")
