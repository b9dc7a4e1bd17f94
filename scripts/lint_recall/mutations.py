"""Ways to break a manifest, each with the rules that must find it.

A mutation changes the documents in place and says whether it applies: where it would change nothing, or what
it leaves still works, it does not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from facts import MADE_UP, Manifest, is_shell, join

from moe4.deploy.lint.command.commandline import split_script
from moe4.deploy.lint.recognize import STARTS

GPU = ("nvidia.com/gpu", "amd.com/gpu")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
Change = Callable[[list[Manifest]], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """A change, the field it is in, and the rules of which one must speak up."""

    name: str
    field: str
    rules: tuple[str, ...]
    change: Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A container that starts vLLM by a list of words."""

    container: Manifest
    key: str
    words: list[Any]
    pod: Manifest | None
    document: Manifest

    @property
    def is_compose(self) -> bool:
        """Whether it is a service of compose."""
        return self.pod is None


def walk(node: Any) -> Iterator[Manifest]:
    """Yield every mapping in a tree."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for item in node:
            yield from walk(item)


def servers(documents: list[Manifest]) -> Iterator[Server]:
    """Yield the containers that a mutation can change: those whose options stand in a list of words."""
    for document in documents:
        if str(document.get("kind")) == "LLMInferenceServiceConfig":
            continue  # a template, which a controller renders
        for node in walk(document):
            for container in node.get("containers") or () if isinstance(node.get("containers"), list) else ():
                yield from server_of(container, node, document)
            services = node.get("services")
            for service in services.values() if isinstance(services, dict) else ():
                yield from server_of(service, None, document)


def server_of(container: Manifest, pod: Manifest | None, document: Manifest) -> Iterator[Server]:
    """Yield a container's server, if its words are a list that is no shell's script."""
    words = [container.get("command"), container.get("args")]
    if pod is None:
        words = [container.get("command")]
    lists = [part for part in words if isinstance(part, list)]
    for part in lists:
        for script in part:
            if isinstance(script, list):
                yield Server(container=container, key="", words=script, pod=pod, document=document)
                return
    text = " ".join(str(word) for part in lists for word in part)
    image = str(container.get("image"))
    starts = "vllm serve" in text or "api_server" in text or "vllm-openai" in image or "vllm-cpu" in image
    shell = any(is_shell(part) for part in lists)
    if starts and lists and not shell and "vllm" in image + text:
        key = "args" if pod is not None and isinstance(container.get("args"), list) else "command"
        yield Server(container=container, key=key, words=container[key], pod=pod, document=document)


def open_scripts(documents: list[Manifest]) -> None:
    """Turn scripts of one command that starts vLLM into lists of its words."""
    for parts in _commands(documents):
        for position, word in enumerate(parts):
            found = split_script(word) if isinstance(word, str) and STARTS.search(word) else []
            if len(found) == 1 and len(found[0]) > 2:
                parts[position] = found[0]


def close_scripts(documents: list[Manifest]) -> None:
    """Turn them back into scripts."""
    for parts in _commands(documents):
        for position, word in enumerate(parts):
            if isinstance(word, list):
                parts[position] = join(word)


def _commands(documents: list[Manifest]) -> Iterator[list[Any]]:
    for node in walk(documents):
        for key in ("command", "args"):
            if isinstance(node.get(key), list):
                yield node[key]


def first(documents: list[Manifest]) -> Server | None:
    """Return the first server."""
    return next(servers(documents), None)


def option(server: Server, *names: str) -> str | None:
    """Return an option's value."""
    for position, word in enumerate(server.words):
        name, equals, value = str(word).partition("=")
        if name in names:
            following = server.words[position + 1 : position + 2]
            return value if equals else (str(following[0]) if following else "")
    return None


def without(server: Server, *names: str) -> bool:
    """Take an option with its value away."""
    for position, word in enumerate(server.words):
        name, equals, _ = str(word).partition("=")
        if name in names:
            several = not equals and position + 1 < len(server.words)
            takes_value = several and not str(server.words[position + 1]).startswith("-")
            del server.words[position : position + 1 + takes_value]
            return True
    return False


def give(*words: str) -> Change:
    """Return the change that gives an option, in the place of the one that is there."""

    def change(documents: list[Manifest]) -> bool:
        server = first(documents)
        if server is None:
            return False
        without(server, words[0].partition("=")[0])
        server.words.extend(words)
        return True

    return change


def give_key(documents: list[Manifest]) -> bool:
    """Give an API key, where none is given."""
    server = first(documents)
    return (
        server is not None
        and option(server, "--api-key") is None
        and give(f"--api-key={MADE_UP}2")(documents)
    )


def gpus(server: Server) -> int:
    """Return the GPUs of a container."""
    resources = server.container.get("resources") or {}
    for side in ("limits", "requests"):
        for name in GPU:
            amount = str((resources.get(side) or {}).get(name, ""))
            if amount.isdigit():
                return int(amount)
    return 0


def set_gpus(server: Server, amount: object) -> bool:
    """Write an amount of GPUs wherever one stands."""
    found = False
    resources = server.container.get("resources") or {}
    for side in ("limits", "requests"):
        for name in GPU:
            if name in (resources.get(side) or {}):
                resources[side][name] = amount
                found = True
    return found


def tensor(server: Server) -> int:
    """Return the tensor parallel size; 0 if it is not a number that is seen."""
    given = option(server, "--tensor-parallel-size", "-tp")
    return 1 if given is None else int(given) if given.isdigit() else 0


def is_alone(server: Server) -> bool:
    """Say whether one machine's GPUs are all that the server has."""
    other = ("--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")
    text = str(server.document)
    spread = any(
        word in text for word in ("leaderWorkerTemplate", "workerGroupSpecs", "workerSpec", "nnodes")
    )
    return not spread and all(option(server, name) is None for name in other)


def on_gpus(change: Callable[[Server], bool]) -> Change:
    """Return a change of the first server that has GPUs of one machine."""

    def apply(documents: list[Manifest]) -> bool:
        for server in servers(documents):
            if gpus(server) and tensor(server) and is_alone(server):
                return change(server)
        return False

    return apply


def no_gpus(server: Server) -> bool:
    """Take the GPUs away."""
    for side in ("limits", "requests"):
        for name in GPU:
            (server.container["resources"].get(side) or {}).pop(name, None)
    return not server.container["resources"].get("claims")


def other_request(server: Server) -> bool:
    """Ask for another number of GPUs than the limit."""
    limits = server.container["resources"].get("limits") or {}
    name = next((name for name in GPU if name in limits), None)
    if name is None:
        return False
    requests = server.container["resources"].setdefault("requests", {}) or {}
    server.container["resources"]["requests"] = {**requests, name: int(str(limits[name])) + 1}
    return True


def sized(words: Callable[[Server], list[str]], *, least: int = 1) -> Change:
    """Return a change of the parallel sizes of a server with `least` GPUs or more."""

    def change(server: Server) -> bool:
        if gpus(server) < least:
            return False
        without(server, "--tensor-parallel-size", "-tp")
        server.words.extend(words(server))
        return True

    return on_gpus(change)


def no_tensor(server: Server) -> bool:
    """Leave several GPUs without a parallel size."""
    return gpus(server) > 1 and without(server, "--tensor-parallel-size", "-tp")


def on_container(change: Callable[[Server], bool], *, compose: bool | None = None) -> Change:
    """Return a change of the first server, or of the first of compose or of a pod."""

    def apply(documents: list[Manifest]) -> bool:
        for server in servers(documents):
            if compose is None or server.is_compose == compose:
                return change(server)
        return False

    return apply


def shm_volume(server: Server) -> Manifest | None:
    """Return the memory volume at /dev/shm of a server of several GPUs."""
    mounts = server.container.get("volumeMounts") or ()
    names = [mount["name"] for mount in mounts if str(mount["mountPath"]).rstrip("/") == "/dev/shm"]
    pod = server.pod or {}
    volumes = [item for item in pod.get("volumes") or () if item["name"] in names]
    in_memory = [item for item in volumes if (item.get("emptyDir") or {}).get("medium") == "Memory"]
    return in_memory[0] if in_memory else None


def shm(change: Callable[[Server, Manifest], None], *, least: int = 2) -> Change:
    """Return a change of the volume at /dev/shm."""

    def apply(server: Server) -> bool:
        volume = shm_volume(server)
        if volume is None or gpus(server) < least:
            return False
        change(server, volume)
        return True

    return on_container(apply)


def remount(server: Server, volume: Manifest) -> None:
    """Mount the memory beside /dev/shm."""
    for mount in server.container["volumeMounts"]:
        if mount["name"] == volume["name"]:
            mount["mountPath"] = "/dev/shmem"


def drop_mounts(server: Server, volume: Manifest) -> None:
    """Take the volume away."""
    server.container.pop("volumeMounts")


def size_shm(size: str | None) -> Callable[[Server, Manifest], None]:
    """Return what gives the volume a size, or none."""

    def change(server: Server, volume: Manifest) -> None:
        volume["emptyDir"].pop("sizeLimit", None)
        if size is not None:
            volume["emptyDir"]["sizeLimit"] = size

    return change


def probe(name: str, change: Callable[[Server, Manifest], bool]) -> Change:
    """Return a change of a probe of the first server that has it."""

    def apply(documents: list[Manifest]) -> bool:
        for server in servers(documents):
            if isinstance(server.container.get(name), dict):
                return change(server, server.container[name])
        return False

    return apply


def drop_probe(name: str) -> Change:
    """Return what takes a probe away."""
    return probe(name, lambda server, _: server.container.pop(name) is not None)


def drop_startup(server: Server, startup: Manifest) -> bool:
    """Take the start-up probe away where the liveness probe then ends the load."""
    if "livenessProbe" not in server.container:
        return False
    del server.container["startupProbe"]
    return True


def asks(server: Server, found: Manifest) -> Manifest | None:
    """Return a probe's httpGet where its port is the server's own."""
    http = found.get("httpGet")
    port = option(server, "--port") or "8000"
    ports = {str(item.get("name")): item.get("containerPort") for item in server.container.get("ports") or ()}
    asked = http and ports.get(str(http.get("port")), http.get("port"))
    return http if http and str(asked) == port else None


def set_http(key: str, value: object) -> Callable[[Server, Manifest], bool]:
    """Return what writes a value into a probe's httpGet."""

    def change(server: Server, found: Manifest) -> bool:
        http = asks(server, found)
        if http is None or is_base(server):
            return False
        http[key] = value
        return True

    return change


def set_count(key: str, value: object) -> Callable[[Server, Manifest], bool]:
    """Return what writes a count into a probe."""

    def change(server: Server, found: Manifest) -> bool:
        found[key] = value
        return True

    return change


def end_soon(server: Server, startup: Manifest) -> bool:
    """Let the start-up probe end the load after ten seconds."""
    startup.update({"periodSeconds": 5, "failureThreshold": 2, "initialDelaySeconds": 0})
    return True


def hasty(server: Server) -> bool:
    """Give a liveness probe that ends the load, and no start-up probe."""
    if is_base(server):
        return False
    server.container.pop("startupProbe", None)
    port = option(server, "--port") or "8000"
    if not port.isdigit():
        return False
    http = {"path": "/health", "port": int(port)}
    server.container["livenessProbe"] = {"httpGet": http, "periodSeconds": 5, "failureThreshold": 3}
    return True


def memory(text: object) -> Change:
    """Return what gives a server of GPUs this much memory."""

    def change(server: Server) -> bool:
        resources = server.container["resources"]
        for side in ("limits", "requests"):
            if side in resources or side == "limits":
                resources[side] = {**(resources.get(side) or {}), "memory": text}
        return True

    return on_gpus(change)


def image(of: Callable[[str], str]) -> Change:
    """Return what changes the image's name, where it is one."""

    def change(server: Server) -> bool:
        name = str(server.container.get("image", ""))
        path, _, last = name.rpartition("/")
        plain = last.partition("@")[0].partition(":")[0]
        if not plain or any(mark in name for mark in "${<"):
            return False
        changed = of(f"{path}/{plain}" if path else plain)
        server.container["image"] = changed
        return changed != name

    return on_container(change)


def other_port(server: Server) -> bool:
    """Let the server listen elsewhere than its probes ask."""
    probes = [server.container[name] for name in PROBES if isinstance(server.container.get(name), dict)]
    if not any(asks(server, found) for found in probes):
        return False
    without(server, "--port")
    server.words.append("--port=9876")
    return True


def loopback(server: Server) -> bool:
    """Let the server listen inside its container alone, where something asks it from outside."""
    probes = [server.container.get(name) or {} for name in PROBES]
    asked = any(way in found for found in probes for way in ("httpGet", "tcpSocket"))
    if not asked and not (server.is_compose and server.container.get("ports")):
        return False
    without(server, "--host")
    server.words.append("--host=127.0.0.1")
    return True


def bad_port(server: Server) -> bool:
    """Give the container a port that is none."""
    if not server.container.get("ports") or server.is_compose:
        return False
    server.container["ports"] = [{"containerPort": 80000}]
    return True


def another_node(documents: list[Manifest]) -> bool:
    """Add a machine to a group that the parallel sizes fill."""
    for document in documents:
        for node in walk(document):
            size = node.get("size")
            sized_by = any("parallel-size" in str(item) for item in walk(node))
            if (
                "leaderWorkerTemplate" not in node
                and "workerTemplate" in node
                and isinstance(size, int)
                and sized_by
            ):
                node["size"] = size + 1
                return True
            groups = node.get("workerGroupSpecs")
            if (
                isinstance(groups, list)
                and groups
                and isinstance(groups[0].get("replicas"), int)
                and sized_by
            ):
                groups[0]["replicas"] += 1
                return True
    return False


def not_root(server: Server) -> bool:
    """Forbid root, and name no user, for an image that starts as root."""
    if server.pod is None or "vllm/vllm-openai" not in str(server.container.get("image")):
        return False
    server.container["securityContext"] = {"runAsNonRoot": True}
    server.pod["securityContext"] = {}
    return True


def as_root(server: Server) -> bool:
    """Forbid root, and name root."""
    if server.pod is None:
        return False
    server.container["securityContext"] = {"runAsNonRoot": True, "runAsUser": 0}
    return True


def set_env(name: str) -> Change:
    """Return what writes a secret into the environment."""

    def change(server: Server) -> bool:
        if server.is_compose:
            return False
        kept = [item for item in server.container.get("env") or () if item["name"] != name]
        server.container["env"] = [*kept, {"name": name, "value": MADE_UP + "1"}]
        return True

    return on_container(change)


def restart(policy: str) -> Change:
    """Return what gives a service of compose a restart policy."""

    def change(server: Server) -> bool:
        if server.container.get("restart", "no") == policy:
            return False
        server.container["restart"] = policy
        return True

    return on_container(change, compose=True)


def is_base(server: Server) -> bool:
    """Say whether services complete the server, so that what is missing may stand there."""
    return "ServingRuntime" in str(server.document)


def auto_tools(server: Server) -> bool:
    """Turn tools on without a parser."""
    if is_base(server):
        return False
    without(server, "--tool-call-parser")
    without(server, "--enable-auto-tool-choice")
    server.words.append("--enable-auto-tool-choice")
    return True


def _gpu_mutations() -> list[Mutation]:
    mismatch = ("parallel-mismatch", "parallel-missing")

    def scaled(factor: float) -> Callable[[Server], bool]:
        def change(server: Server) -> bool:
            amount = int(gpus(server) * factor)
            return amount >= 1 and amount != gpus(server) and set_gpus(server, amount)

        return change

    return [
        Mutation(name="twice the GPUs", field="GPUs", rules=mismatch, change=on_gpus(scaled(2))),
        Mutation(name="half the GPUs", field="GPUs", rules=mismatch, change=on_gpus(scaled(0.5))),
        Mutation(name="no GPUs", field="GPUs", rules=("gpu-missing",), change=on_gpus(no_gpus)),
        Mutation(
            name="requests over limits",
            field="GPUs",
            rules=("gpu-requests-limits",),
            change=on_gpus(other_request),
        ),
        Mutation(
            name="GPUs in words",
            field="GPUs",
            rules=("value-refused",),
            change=on_gpus(lambda server: set_gpus(server, "two GPUs")),
        ),
        Mutation(
            name="TP twice the GPUs",
            field="TP",
            rules=mismatch,
            change=sized(lambda server: [f"--tensor-parallel-size={2 * gpus(server)}"]),
        ),
        Mutation(
            name="TP 3 more",
            field="TP",
            rules=mismatch,
            change=sized(lambda server: ["--tensor-parallel-size", str(gpus(server) + 3)]),
        ),
        Mutation(
            name="TP 1 of several",
            field="TP",
            rules=mismatch,
            change=sized(lambda _: ["--tensor-parallel-size=1"], least=2),
        ),
        Mutation(name="no TP", field="TP", rules=mismatch, change=on_gpus(no_tensor)),
        Mutation(
            name="TP in words",
            field="TP",
            rules=("option-value", *mismatch),
            change=sized(lambda _: ["--tensor-parallel-size=all"]),
        ),
        Mutation(
            name="PP beside full TP",
            field="TP",
            rules=mismatch,
            change=sized(
                lambda server: [f"--tensor-parallel-size={gpus(server)}", "--pipeline-parallel-size=2"]
            ),
        ),
        Mutation(
            name="DP beside full TP",
            field="TP",
            rules=mismatch,
            change=sized(lambda server: [f"--tensor-parallel-size={gpus(server)}", "--data-parallel-size=2"]),
        ),
        Mutation(
            name="TP misspelt",
            field="TP",
            rules=("option-unknown", *mismatch),
            change=sized(lambda server: [f"--tensor-paralel-size={gpus(server)}"]),
        ),
    ]


def _option_mutations() -> list[Mutation]:
    unknown, value = ("option-unknown",), ("option-value",)
    return [
        Mutation(
            name="parser kimi-k2", field="parser", rules=value, change=give("--tool-call-parser=kimi-k2")
        ),
        Mutation(
            name="parser herms", field="parser", rules=value, change=give("--tool-call-parser", "herms")
        ),
        Mutation(
            name="reasoning parser deepseek",
            field="parser",
            rules=value,
            change=give("--reasoning-parser=deepseek"),
        ),
        Mutation(
            name="tools without a parser",
            field="parser",
            rules=("tools-missing",),
            change=on_container(auto_tools),
        ),
        Mutation(name="tool choise", field="parser", rules=unknown, change=give("--enable-auto-tool-choise")),
        Mutation(name="context lots", field="context", rules=value, change=give("--max-model-len=lots")),
        Mutation(name="context 32kb", field="context", rules=value, change=give("--max-model-len=32kb")),
        Mutation(name="context 8192.5", field="context", rules=value, change=give("--max-model-len=8192.5")),
        Mutation(
            name="context misspelt", field="context", rules=unknown, change=give("--max-modell-len=8192")
        ),
        Mutation(
            name="share of memory 95", field="memory", rules=value, change=give("--gpu-memory-utilization=95")
        ),
        Mutation(
            name="share of memory in percent",
            field="memory",
            rules=value,
            change=give("--gpu-memory-utilization=90%"),
        ),
        Mutation(
            name="share misspelt", field="memory", rules=unknown, change=give("--gpu-memory-utilisation=0.9")
        ),
        Mutation(name="dtype int4", field="options", rules=value, change=give("--dtype=int4")),
        Mutation(name="no value", field="options", rules=value, change=give("--max-num-seqs")),
        Mutation(name="sequences in words", field="options", rules=value, change=give("--max-num-seqs=many")),
        Mutation(
            name="port 99999",
            field="ports",
            rules=("option-value", "probe-port"),
            change=give("--port=99999"),
        ),
    ]


def _pod_mutations() -> list[Mutation]:
    refused = ("value-refused",)
    return [
        Mutation(name="no memory at /dev/shm", field="shm", rules=("shm-missing",), change=shm(drop_mounts)),
        Mutation(name="memory beside /dev/shm", field="shm", rules=("shm-missing",), change=shm(remount)),
        Mutation(
            name="64Mi of /dev/shm",
            field="shm",
            rules=("shm-missing",),
            change=shm(size_shm("64Mi"), least=1),
        ),
        Mutation(name="/dev/shm of 16GB", field="shm", rules=refused, change=shm(size_shm("16GB"), least=1)),
        Mutation(
            name="no start-up probe",
            field="probes",
            rules=("probe-startup-missing",),
            change=probe("startupProbe", drop_startup),
        ),
        Mutation(
            name="start-up ends soon",
            field="probes",
            rules=("probe-startup-short",),
            change=probe("startupProbe", end_soon),
        ),
        Mutation(
            name="hasty liveness",
            field="probes",
            rules=("probe-startup-missing",),
            change=on_container(hasty, compose=False),
        ),
        Mutation(
            name="no readiness probe",
            field="probes",
            rules=("probe-missing",),
            change=drop_probe("readinessProbe"),
        ),
        Mutation(
            name="no liveness probe",
            field="probes",
            rules=("probe-missing",),
            change=drop_probe("livenessProbe"),
        ),
        Mutation(
            name="port of a probe",
            field="probes",
            rules=("probe-port",),
            change=probe("readinessProbe", set_http("port", 9877)),
        ),
        Mutation(
            name="name of a port",
            field="probes",
            rules=("probe-port",),
            change=probe("readinessProbe", set_http("port", "htttp")),
        ),
        Mutation(
            name="path of a probe",
            field="probes",
            rules=("probe-path",),
            change=probe("readinessProbe", set_http("path", "/healthz")),
        ),
        Mutation(
            name="period in words",
            field="probes",
            rules=refused,
            change=probe("readinessProbe", set_count("periodSeconds", "ten")),
        ),
        Mutation(name="memory 1Gi", field="memory", rules=("memory-too-small",), change=memory("1Gi")),
        Mutation(
            name="memory without a unit", field="memory", rules=("memory-too-small",), change=memory(64)
        ),
        Mutation(name="memory 64GB", field="memory", rules=refused, change=memory("64GB")),
        Mutation(name="server's port", field="ports", rules=("probe-port",), change=on_container(other_port)),
        Mutation(name="loopback", field="ports", rules=("host-loopback",), change=on_container(loopback)),
        Mutation(name="container port 80000", field="ports", rules=refused, change=on_container(bad_port)),
        Mutation(name="one machine more", field="nodes", rules=("parallel-mismatch",), change=another_node),
    ]


def _other_mutations() -> list[Mutation]:
    untagged = ("image-untagged",)
    return [
        Mutation(
            name="image :latest", field="image", rules=untagged, change=image(lambda name: f"{name}:latest")
        ),
        Mutation(name="image without a tag", field="image", rules=untagged, change=image(lambda name: name)),
        Mutation(
            name="image :nightly", field="image", rules=untagged, change=image(lambda name: f"{name}:nightly")
        ),
        Mutation(
            name="staging registry",
            field="image",
            rules=("image-staging",),
            change=image(lambda name: f"registry.stage.example/{name}:v1"),
        ),
        Mutation(
            name="no root, no user", field="user", rules=("user-image-root",), change=on_container(not_root)
        ),
        Mutation(
            name="no root, user 0", field="user", rules=("user-image-root",), change=on_container(as_root)
        ),
        Mutation(
            name="API key in the file",
            field="secrets",
            rules=("secret-inline",),
            change=give_key,
        ),
        Mutation(
            name="token in the file", field="secrets", rules=("secret-inline",), change=set_env("HF_TOKEN")
        ),
        Mutation(
            name="restart on-failure",
            field="restart",
            rules=("restart-missing",),
            change=restart("on-failure"),
        ),
        Mutation(name="restart no", field="restart", rules=("restart-missing",), change=restart("no")),
    ]


MUTATIONS = [*_gpu_mutations(), *_option_mutations(), *_pod_mutations(), *_other_mutations()]
