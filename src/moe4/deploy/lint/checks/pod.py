"""What keeps a server running and safe: probes, images, strategy, user, secrets; KServe's own rules."""

import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml.comments import CommentedMap

from moe4.deploy.lint.checks.needs import Context
from moe4.deploy.lint.finding import Finding, Level
from moe4.deploy.lint.gather import KSERVE, RUNTIMES
from moe4.deploy.lint.place import Document, Place, entries, get, mapping, whole
from moe4.deploy.lint.server import DescribedServer
from moe4.deploy.manifests.images import moves, starts_as_root
from moe4.deploy.sizing.fit import load_seconds
from moe4.vllm_facts import flags

STAGING = re.compile(r"(^|[./-])(stage|staging|preprod|brew|nightly)([./:-]|$)")
SECRET = re.compile(r"(^|_)((API|ACCESS|SECRET|PRIVATE|AUTH)_?KEY(_ID)?|^KEY|TOKEN|PASSWORD|SECRET)$")
# What stands for a value that is given elsewhere, or names a file or a secret that has it.
NO_SECRET = re.compile(
    r"\$|\{\{|/|<.*>$|(your|my|change|replace|example|dummy|none|null|empty)([-_ ]|$)|x+$|$", re.I
)
DEPRECATED_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
# Routes of vLLM that answer a GET without a key or a body.
HEALTH_PATHS = (
    "/health",
    "/ping",
    "/version",
    "/metrics",
    "/load",
    "/v1/models",
    "/docs",
    "/openapi.json",
    "/is_sleeping",
)
USUAL_LOAD_SECONDS = 600
SOON_SECONDS = 60  # vLLM itself takes this to start, whatever the model
TEMPLATE_STARTUP_SECONDS = 600  # of KServe's own templates for LLMInferenceService
MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
GPUS_IN_ENVIRONMENT = ("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE")


def check_running(server: DescribedServer, context: Context) -> Iterator[Finding]:
    """Yield what is wrong with a server's probes, images, strategy, user and secrets."""
    yield from _host(server)
    if not server.on_host:
        if not server.is_helper and "--headless" not in server.flags:
            yield from _probes(server, context)
        yield from _user(server)
    yield from _restart(server)
    yield from _label(server)
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
        yield from _no_startup(server, load)
    else:
        yield from _startup_window(startup, context, load)
    for name in ("readinessProbe", "livenessProbe"):
        if name not in server.probes and not server.templated:
            why = f"there is no {name}: a server that hangs keeps getting requests"
            yield server.place.find("probe-missing", why, f"add a {name} on /health")
    if not server.templated:
        yield from _probe_ports(server)
        yield from _probe_paths(server)


def _no_startup(server: DescribedServer, load: float | None) -> Iterator[Finding]:
    """Yield what the lack of a start-up probe does: the liveness probe, if there is one, ends the load."""
    fix = "add a startupProbe on /health with a failureThreshold that lasts"
    liveness = server.probes.get("livenessProbe")
    if server.templated:
        why = f"KServe's template gives {TEMPLATE_STARTUP_SECONDS} s; the load alone takes {load:.0f} s"
        yield server.place.find("probe-startup-missing", why, fix)
    elif liveness is None:
        why = "there is no startupProbe: a long load looks like a server that hangs"
        yield server.place.find("probe-startup-missing", why, fix, level="warning")
    else:
        window = _window(liveness)
        level: Level | None = "warning" if load is None and window >= SOON_SECONDS else None
        if window < (USUAL_LOAD_SECONDS if load is None else load):
            takes = "minutes to an hour" if load is None else f"{load:.0f} s"
            why = (
                f"loading takes {takes}; the livenessProbe ends it after {window} s, without a start-up probe"
            )
            yield server.place.find("probe-startup-missing", why, fix, level=level)


def _probe_ports(server: DescribedServer) -> Iterator[Finding]:
    """Yield probes that ask a port on which nothing listens."""
    port = listens_on(server)
    named = named_ports(server)
    for probe in server.probes.values():
        for way in ("httpGet", "tcpSocket", "grpc"):
            place = probe / way / "port"
            asked = place.value
            if isinstance(asked, str) and "{{" not in asked and "$" not in asked:
                if asked not in named and not server.partial:
                    known = ", ".join(named) or "none"
                    why = f"the container has no port named {asked}; named ports: {known}"
                    fix = f"use the number {port or 8000}, or name the port"
                    yield place.find("probe-port", why, fix)
                asked = named.get(asked)
            if isinstance(asked, int) and whole(port) not in (None, asked):
                why = f"the probe asks port {asked}, the server listens on {port}"
                yield place.find("probe-port", why, f"use {port}")


def listens_on(server: DescribedServer) -> str | None:
    """Return the server's port; None if it is not seen."""
    if flags.PORT in server.flags:
        return server.value(flags.PORT)
    return None if server.partial else "8000"


def named_ports(server: DescribedServer) -> dict[str, object]:
    """Return the numbers of the ports that the server's container names."""
    ports = entries((server.container / "ports").value) if server.container is not None else []
    return {str(get(item, "name")): get(item, "containerPort") for item in ports if get(item, "name")}


def _probe_paths(server: DescribedServer) -> Iterator[Finding]:
    """Yield probes of a path that vLLM answers with 404."""
    port = listens_on(server)
    for probe in server.probes.values():
        place = probe / "httpGet" / "path"
        path, asked = place.value, get(probe.value, "httpGet", "port")
        asked = named_ports(server).get(str(asked), asked)
        if (
            not isinstance(path, str)
            or "{{" in path
            or "$" in path
            or port is None
            or whole(port) != whole(asked)
        ):
            continue
        if flags.ROOT_PATH not in server.flags and path.partition("?")[0].rstrip("/") not in HEALTH_PATHS:
            why = f"vLLM has no route {path}, so the probe never succeeds"
            yield place.find("probe-path", why, "ask /health")


def _host(server: DescribedServer) -> Iterator[Finding]:
    """Yield a server that listens inside its container alone, where something asks from outside."""
    if flags.HOST not in server.flags or server.templated:
        return
    host, place = server.value(flags.HOST), server.flags[flags.HOST][1]
    if host is None or not (host in ("localhost", "::1", "[::1]") or host.startswith("127.")):
        return
    from_outside = [
        probe.path[-1]
        for probe in server.probes.values()
        for way in ("httpGet", "tcpSocket", "grpc")
        if get(probe.value, way) is not None
    ]
    if from_outside or server.published:
        who = "its published port" if server.published else f"the {from_outside[0]}"
        why = f"--host {host} listens inside the container alone: {who} cannot reach it"
        yield place.find("host-loopback", why, "use --host=0.0.0.0")


def _window(probe: Place) -> int:
    """Return the seconds after which a probe that always fails ends the container."""
    period, failures = whole(get(probe.value, "periodSeconds")), whole(get(probe.value, "failureThreshold"))
    return (period or 10) * (failures or 3) + (whole(get(probe.value, "initialDelaySeconds")) or 0)


def _startup_window(startup: Place, context: Context, load: float | None) -> Iterator[Finding]:
    counts = [get(startup.value, name) for name in ("periodSeconds", "failureThreshold")]
    if any(count is not None and whole(count) is None for count in counts):
        return  # another rule says so
    period, window = whole(counts[0]) or 10, _window(startup)
    if load is None and window < SOON_SECONDS:
        why = f"killed after {window} s, before vLLM itself has started"
        yield startup.find(
            "probe-startup-short", why, "raise failureThreshold: loading takes minutes to an hour"
        )
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
        tag = name.partition(":")[2]
        if "@" not in image and (not tag or moves(tag)):
            why = f"{image} names no version, so what runs can change at any time"
            yield place.find("image-untagged", why, "give a tag of a release, or a digest")
        registry = image.partition("/")[0]
        if STAGING.search(registry):
            why = f"{registry} is a staging registry, closed to users and emptied without notice"
            yield place.find("image-staging", why, "use the released image")


def _strategy(server: DescribedServer) -> Iterator[Finding]:
    if server.strategy is None or not (server.gpus or server.all_gpus):
        return
    strategy = server.strategy
    surge = get(strategy.value, "rollingUpdate", "maxSurge")
    if get(strategy.value, "type") != "Recreate" and str(surge) not in ("0", "0%"):
        yield strategy.find(
            "strategy-rolling",
            "an update starts the new server before the old one ends, and waits for GPUs that are in use",
            "set the strategy's type to Recreate",
            strategy.writer(CommentedMap({"type": "Recreate"})),
        )


def _user(server: DescribedServer) -> Iterator[Finding]:
    if server.templated:
        return
    no_root = user = None
    for place in server.security:  # the container's wins over the pod's
        context = mapping(place.value)
        no_root = context.get("runAsNonRoot", no_root)
        user = context.get("runAsUser", user)
    if server.partial and not (no_root and whole(user) == 0):
        return
    if no_root and user is None:
        yield from _no_user(server)
    elif no_root and whole(user) == 0:
        why = "runAsUser 0 is root, which runAsNonRoot forbids: the container is never created"
        yield server.security[-1].find("user-image-root", why, "give one, such as 1000", level="error")
    if no_root or whole(user):
        return
    why = "nothing keeps the server from running as root"
    fix = "set runAsNonRoot, allowPrivilegeEscalation: false and drop all capabilities"
    yield server.place.find("user-root", why, fix)


def _restart(server: DescribedServer) -> Iterator[Finding]:
    """Yield a policy that leaves the server down: vLLM's exit status is 0 where its engine has died."""
    if server.restart is None:
        return
    policy, place = server.restart
    policy = policy.partition(":")[0]
    fix = "write Restart=always" if server.kind == "quadlet" else "write restart: always"
    if policy == "on-failure" or policy.startswith("on-ab"):
        why = f"vLLM exits with 0 when its engine dies, so {policy} leaves the server down"
        yield place.find("restart-missing", why, fix)
    elif policy not in ("always", "unless-stopped", "on-success"):
        why = "nothing starts the server again when its engine dies"
        yield place.find("restart-missing", why, fix, level="warning")


def _label(server: DescribedServer) -> Iterator[Finding]:
    """Yield folders of the machine that SELinux hides from the container."""
    for place in server.host_volumes:
        options = str(place.value).split(":")[2:]
        if not server.labelled and not {"z", "Z"} & set(",".join(options).split(",")):
            why = "where SELinux is on, the container may not read this folder"
            fix = "set SecurityLabelDisable=true, which GPUs need too, or add :z"
            yield place.find("selinux-label", why, fix)


def _no_user(server: DescribedServer) -> Iterator[Finding]:
    """Yield where nothing gives a user and the image's is root; OpenShift's constraints give one."""
    notes = mapping(server.annotations.value) if server.annotations is not None else {}
    if any("openshift.io/" in str(key) for key in notes):
        return
    if any(starts_as_root(str(image.value)) for image in server.images):
        why = "the image starts as root, which runAsNonRoot forbids: outside OpenShift it is never created"
        yield server.security[-1].find("user-image-root", why, "add runAsUser, such as 1000")


def _secrets(server: DescribedServer) -> Iterator[Finding]:
    for name, place in server.variables.items():
        literal = server.variable(name)
        if SECRET.search(name) and literal and not NO_SECRET.match(literal):
            why = f"{name} is in the file, for everyone who can read it"
            yield place.find("secret-inline", why, "take it from a secret")
    key = server.flags.get(flags.API_KEY)
    if key is not None and not NO_SECRET.match(key[0]):
        why = "the API key is in the file and in the process list"
        yield key[1].find("secret-inline", why, "give VLLM_API_KEY from a secret")


def check_object(document: Document) -> Iterator[Finding]:
    """Yield what compose and KServe's webhooks refuse or warn of, which the schemas do not show."""
    root = Place(document=document)
    services = (root / "services").value
    if services is not None and not document.kind and not isinstance(services, dict):
        why = "the services of a compose file must be a mapping of names to services"
        yield (root / "services").find("file-unreadable", why, "give each service its name")
    elif not document.kind:
        for name, service in mapping(services).items():
            if not isinstance(service, dict):
                why = f"the service {name} must be a mapping with an image or a build"
                yield (root / "services" / str(name)).find(
                    "file-unreadable", why, "describe it, or remove it"
                )
    if document.group != KSERVE:
        return
    annotations = root / "metadata" / "annotations"
    mode = str((annotations / MODE).value or "")
    if mode in DEPRECATED_MODES:
        present = DEPRECATED_MODES[mode]
        yield (annotations / MODE).find(
            "mode-deprecated",
            f"{mode} is the old name of {present}, and will be removed",
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
        why = f"data {data} is not a multiple of dataLocal {local}"
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
