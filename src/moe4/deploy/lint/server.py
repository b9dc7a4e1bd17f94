"""One vLLM server, whatever kind of file describes it: what the rules look at."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from moe4.deploy.lint.command.commandline import Words, script_variables
from moe4.deploy.lint.place import Place, entries, get, mapping, whole
from moe4.deploy.lint.quantities import parse_quantity
from moe4.deploy.lint.recognize import STARTS, hide_computed
from moe4.vllm_facts import flags

# Resources that are GPUs, one each; and other accelerators, whose parts vLLM may count otherwise.
GPU_RESOURCE = re.compile(r".*(/gpu|/gpu\.shared|/mig-[\w.-]+|/pgpu|\.intel\.com/(i915|xe))")
ACCELERATOR = re.compile(
    r"(google\.com/tpu|aws\.amazon\.com/neuron(core|device)?|habana\.ai/gaudi|huawei\.com/Ascend.*|ibm\.com/(aiu|spyre).*)"
)
# vLLM's short names and spellings, to the long one.
ALIASES = {
    flags.TENSOR_PARALLEL_SHORT: flags.TENSOR_PARALLEL,
    flags.PIPELINE_PARALLEL_SHORT: flags.PIPELINE_PARALLEL,
    flags.DATA_PARALLEL_SHORT: flags.DATA_PARALLEL,
    "--model_len": flags.MAX_MODEL_LEN,
}
PARALLEL = ("tensor", "pipeline", "data")
# As Kubernetes, compose and shells write variables.
VARIABLE = re.compile(
    r"\$(?:\((?P<a>\w+)\)|\{(?P<b>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<c>[A-Za-z_]\w*))", re.A
)
TEMPLATE = "{{"
SIMULATOR = re.compile(r"(^|[/_-])(sim|simulator|mock)([:@_-]|$)")  # llm-d-inference-sim


@dataclass(kw_only=True, slots=True)
class DescribedServer:
    """A server's settings, each with its place. None: not given.

    gpus: in limits, or in requests if it stands only there; `all_gpus` where the machine's all are taken.
    templated: KServe's own templates give command, probes' targets, mounts and /dev/shm's mount.
    partial: a part stands in a file that is not seen, so that nothing can be called missing.
    by_moe4: moe4 serve starts vLLM, and adds its options.
    model_images: images with weights.
    container, volumes: where a volume could be added. assigned: variables that the script itself sets.
    nodes: machines of one replica; total_gpus: their GPUs, where the machines differ.
    command: what starts the server, its words as the file has them; has_program: it does not begin with the
    image's own entry point. additional: words that a template adds to vLLM's.
    claims: GPUs come by claims of Dynamic Resource Allocation, whose number is not seen.
    is_helper: another pod of the same replica, whose command is not `vllm serve`.
    restart: podman's, compose's or systemd's policy, `no` if none is given.
    host_volumes: folders of the machine in a container of podman; labelled: SELinux is told to let it.
    published: ports of the container are reached from outside it.
    """

    place: Place
    kind: str
    images: list[Place] = field(default_factory=list)
    flags: dict[str, tuple[str, Place]] = field(default_factory=dict)
    flags_place: Place
    variables: dict[str, Place] = field(default_factory=dict)
    assigned: dict[str, str] = field(default_factory=dict)
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
    total_gpus: int | None = None
    memory: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    strategy: Place | None = None
    security: list[Place] = field(default_factory=list)
    command: Words = field(default_factory=list)
    has_program: bool = False
    additional: Words = field(default_factory=list)
    claims: bool = False
    published: bool = False
    is_helper: bool = False
    restart: tuple[str, Place] | None = None
    host_volumes: list[Place] = field(default_factory=list)
    labelled: bool = False
    annotations: Place | None = None

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
            for name, amount in mapping(get(self.resources.value, side)).items():
                if is_accelerator(str(name)):
                    yield side, str(name), whole(amount) or 0

    @property
    def counts_otherwise(self) -> bool:
        """Whether its accelerators are no GPUs: a rank may be a chip, a core or several of them."""
        return any(not GPU_RESOURCE.fullmatch(name) for _, name, _ in self.gpu_amounts())

    @property
    def replica_gpus(self) -> int:
        """GPUs of all machines of one replica."""
        return self.gpus * self.nodes if self.total_gpus is None else self.total_gpus

    @property
    def is_simulator(self) -> bool:
        """Whether the image imitates vLLM, without a model or GPUs."""
        return any(SIMULATOR.search(str(image.value)) for image in self.images)

    @property
    def memory_bytes(self) -> int | None:
        """Host memory in limits, else in requests."""
        if self.memory is not None:
            return parse_quantity(self.memory, on_host=self.on_host)
        for side in ("limits", "requests"):
            value = get(self.resources.value, side, "memory") if self.resources else None
            if value is not None:
                return parse_quantity(str(value))
        return None

    @property
    def shm_bytes(self) -> int:
        """Size of /dev/shm; 0 if it has none of its own."""
        return parse_quantity(self.shm_size or "", on_host=self.on_host) or 0

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
        number = whole(self.value(f"--{what}-parallel-size"))
        return 1 if number is None else number

    @property
    def has_sizes(self) -> bool:
        """Whether any parallel size is given."""
        return bool(self.sizes) or any(f"--{name}-parallel-size" in self.flags for name in PARALLEL)

    @property
    def has_unknown_sizes(self) -> bool:
        """Whether a parallel size is given by a variable whose value is not seen."""
        return any(True for _ in self.unknown_sizes())

    def unknown_sizes(self) -> Iterator[tuple[str, str]]:
        """Yield the parallel sizes whose values are not seen, with what stands in the file."""
        for name in PARALLEL:
            flag = f"--{name}-parallel-size"
            if name not in self.sizes and flag in self.flags and self.value(flag) is None:
                yield flag, self.flags[flag][0]

    def value(self, flag: str) -> str | None:
        """Return an option's value, with its variables' values; None where one of them is not seen."""
        given = self.flags.get(flag)
        return None if given is None else self.fill(given[0])

    def fill(self, text: str, within: tuple[str, ...] = ()) -> str | None:
        """Return a text with its variables' values; None where one of them is not seen.

        within: variables whose values are being filled in, of which none may hold itself.
        """
        if TEMPLATE in text:
            return None
        unknown = False

        def put_in(found: re.Match[str]) -> str:
            nonlocal unknown
            name = found["a"] or found["b"] or found["c"]
            value = None if self.on_host or name in within else self.variable(name)
            if value is not None:
                value = self.fill(value, (*within, name))
            elif found["default"] is not None:
                value = self.fill(found["default"], within)
            unknown = unknown or value is None
            return value or ""

        filled = VARIABLE.sub(put_in, text)
        return None if unknown else filled

    def variable(self, name: str) -> str | None:
        """Return what the file sets a variable of the environment to; None if it does not say."""
        if name in self.assigned:
            return self.assigned[name]
        place = self.variables.get(name)
        if place is None:
            return None
        value = place.value
        value = get(value, "value") if isinstance(value, dict) else value
        if isinstance(value, str) and value.startswith(f"{name}="):  # an item of compose's list
            value = value.partition("=")[2]
        return str(value) if isinstance(value, str | int | float) else None

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


def is_accelerator(resource: str) -> bool:
    """Say whether a resource's name is a GPU's or another accelerator's."""
    return bool(GPU_RESOURCE.fullmatch(resource) or ACCELERATOR.fullmatch(resource))


def read_container(
    server: DescribedServer, container: Place, volumes: Place, configs: dict[str, Place] | None = None
) -> None:
    """Add what a container of a pod says; later containers win over earlier ones.

    configs: the data of the ConfigMaps that are seen, by name.
    """
    if server.container is None:
        server.container, server.volumes = container, volumes
    if (container / "image").value:
        server.images = [container / "image"]
    words: Words = []
    for key in ("command", "args"):
        place = container / key
        if place.value is not None:
            server.flags_place = place
        items: Words = [(str(item), place / number) for number, item in enumerate(entries(place.value))]
        server.has_program = server.has_program or (key == "command" and bool(items))
        server.command += items
        for number, item in enumerate(entries(place.value)):
            words += [(word, place / number) for word in split_words(str(item))]
    for item in entries((container / "envFrom").value):
        data = (configs or {}).get(str(get(item, "configMapRef", "name")))
        for key in mapping(data.value) if data is not None else ():
            assert data is not None
            server.variables[f"{get(item, 'prefix') or ''}{key}"] = data / str(key)
    for number, item in enumerate(entries((container / "env").value)):
        name = str(get(item, "name"))
        server.variables[name] = _source_of(container / "env" / number, configs)
        if name == "VLLM_ADDITIONAL_ARGS":
            place = container / "env" / number / "value"
            added = [(word, place) for word in split_words(str(place.value or ""))]
            server.additional += added
            words += added
            server.flags_place = place
    server.read_flags(words)
    server.assigned = script_variables([text for text, _ in server.command])
    if (container / "resources").value is not None:
        server.resources = container / "resources"
        server.claims = bool(entries((container / "resources" / "claims").value))
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


def _source_of(variable: Place, configs: dict[str, Place] | None) -> Place:
    """Return where a variable of a container has its value: there, or in a ConfigMap that is seen."""
    reference = get(variable.value, "valueFrom", "configMapKeyRef")
    data = (configs or {}).get(str(get(reference, "name")))
    return variable if data is None else data / str(get(reference, "key"))


def split_words(text: str) -> list[str]:
    """Split an argument, which may be a whole script, into words, those of `eval "vllm serve ..."` too."""
    if "\n" not in text and " " not in text:
        return [text]
    try:
        words = shlex.split(hide_computed(text), comments=True)
    except ValueError:
        return text.split()
    nested = [split_words(word) if word != text and STARTS.search(word) else [word] for word in words]
    return [word for part in nested for word in part]
