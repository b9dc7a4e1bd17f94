"""What a deployment is asked to be; what cannot work is refused here, in one line."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from moe4.arguments import argument
from moe4.deploy.manifests.grammar import (
    check_claim,
    check_folder,
    check_image,
    check_namespace,
    check_object_name,
    check_repository,
    parse_node_selector,
    parse_toleration,
)
from moe4.deploy.manifests.images import has_plugin, vllm_version
from moe4.deploy.sizing.fit import Fit
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.errors import DeployError
from moe4.vllm_facts.versions import IMAGE_TAG

Form = Literal["podman", "quadlet", "compose", "kserve", "llmd", "kubernetes", "leaderworkerset"]
Engine = Literal["vllm", "rhaiis", "cpu"]
FORMS: tuple[Form, ...] = get_args(Form)
ON_A_CLUSTER: tuple[Form, ...] = ("kserve", "llmd", "kubernetes", "leaderworkerset")
CHECKS_ANSWERS: tuple[Form, ...] = ("kserve", "kubernetes", "leaderworkerset")
ENGINES: tuple[Engine, ...] = ("vllm", "rhaiis", "cpu")
IMAGES: dict[Engine, str] = {
    "vllm": f"docker.io/vllm/vllm-openai:{IMAGE_TAG}",
    "rhaiis": "registry.redhat.io/rhaiis/vllm-cuda-rhel9:3.2.2",
    "cpu": "localhost/moe4-cpu:0.1.0",
}
MAX_NAME = 40
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SCHEMES = ("pvc", "oci", "hf", "file")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where the weights come from: `pvc://CLAIM/PATH`, `oci://IMAGE`, `hf://ORG/NAME` or `file:///PATH`."""

    scheme: str
    rest: str

    @property
    def uri(self) -> str:
        """The whole address."""
        return f"{self.scheme}://{self.rest}"

    @property
    def claim(self) -> tuple[str, str]:
        """A PVC's name and the path in it, without a slash before it."""
        name, _, path = self.rest.partition("/")
        return name, path.strip("/")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployOptions:
    """What was asked for.

    disk: bytes a second the weights are loaded at. name: that of all objects. check_script: the program that
    asks the server for the release's expected answers, as start-up probe.
    """

    form: Form
    engine: Engine = "vllm"
    name: str
    source: ModelSource
    image: str | None = None
    namespace: str | None = None
    port: int = 8000
    api_key_secret: str | None = None
    hf_secret: str | None = None
    tolerations: tuple[str, ...] = ()
    node_selector: dict[str, str] = field(default_factory=dict)
    openshift: bool = False
    trust_remote_code: bool = False
    disk: float = 0.3e9
    check_script: str | None = None

    @property
    def image_name(self) -> str:
        """The image to run."""
        return IMAGES[self.engine] if self.image is None else self.image

    @property
    def guards_all(self) -> bool:
        """Whether an API key can guard all routes: moe4 is in the image."""
        return self.engine == "cpu" or has_plugin(self.image_name)

    @property
    def has_our_vllm(self) -> bool:
        """Whether the image has the vLLM that moe4 knows, by its version or by the plugin in it."""
        known, found = vllm_version(IMAGES["vllm"]), vllm_version(self.image_name)
        same = (
            known is not None and found is not None and known.rpartition(".")[0] == found.rpartition(".")[0]
        )
        return same or has_plugin(self.image_name)


def find_form(text: str) -> Form:
    """Return the form of this name. Raises DeployError."""
    for form in FORMS:
        if form == text:
            return form
    raise DeployError(f"unknown form {text}; known are {', '.join(FORMS)} and dashboard")


def find_engine(text: str) -> Engine:
    """Return the engine of this name. Raises DeployError."""
    for engine in ENGINES:
        if engine == text:
            return engine
    raise DeployError(f"{argument('engine', text)} is none of {', '.join(ENGINES)}")


def parse_source(text: str) -> ModelSource:
    """Read the address of the weights. Raises DeployError."""
    scheme, found, rest = text.partition("://")
    if not found or scheme not in SCHEMES or not rest.strip("/"):
        raise DeployError(
            f"{argument('model', text)} is not an address; give pvc://CLAIM/PATH, oci://IMAGE:TAG, "
            "hf://ORG/NAME or file:///PATH"
        )
    return ModelSource(scheme=scheme, rest=rest)


def find_source(model: str | None, release: str) -> ModelSource:
    """Return where a server finds the weights: as it was said, or where the release itself lies."""
    if model is not None:
        return parse_source(model)
    if Path(release).exists():
        folder = Path(release).resolve()
        return ModelSource(scheme="file", rest=str(folder if folder.is_dir() else folder.parent))
    return ModelSource(scheme="hf", rest=release)


def default_name(release: ReleaseSize) -> str:
    """Return the release's name as Kubernetes allows names."""
    name = re.sub(r"[^a-z0-9]+", "-", release.name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"m-{name}"
    return name[:MAX_NAME].rstrip("-")


def check_name(name: str) -> None:
    """Raise DeployError unless this can be the name of all objects."""
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise DeployError(
            f"{argument('name', name or '(nothing)')} must be 1 to {MAX_NAME} lower-case letters, "
            "digits and hyphens, "
            "a letter first"
        )


def check(options: DeployOptions, release: ReleaseSize, fit: Fit) -> None:
    """Refuse a deployment that cannot work. Raises DeployError."""
    form, engine, source = options.form, options.engine, options.source
    if engine == "cpu" and release.group_size is None:
        raise DeployError(f"{release.name} is not W4A16; {argument('engine', 'cpu')} is for moe4's releases")
    if not fit.works:
        lower = (
            f"; {argument('max_model_len', fit.longest)} would fit"
            if 0 < fit.longest < fit.max_model_len
            else ""
        )
        raise DeployError(
            f"{release.name} cannot be served on {fit.layout.num_gpus} x {fit.device.name} "
            f"({fit.layout.describe()}): {fit.reason}{lower}"
        )
    _check_texts(options)
    if not 1024 <= options.port <= 65535:
        raise DeployError(
            f"{argument('port', options.port)} must be in 1024..65535: the server does not run as root"
        )
    if (engine == "cpu") != (fit.device.kind == "cpu"):
        raise DeployError(
            f"{argument('engine', 'cpu')} goes with {argument('memory')}, "
            f"the other engines with {argument('gpu')} or {argument('gpu_memory')}"
        )
    if form == "llmd" and (engine == "cpu" or options.port != 8000):
        raise DeployError("llmd runs vLLM by KServe's template, on GPUs and port 8000")
    if engine == "rhaiis" and fit.device.kind != "nvidia":
        raise DeployError(
            f"{argument('engine', 'rhaiis')} is the CUDA image; it does not run on {fit.device.name}"
        )
    if engine == "vllm" and fit.device.kind == "amd":
        raise DeployError(f"no vLLM image for {fit.device.name} has been tried with INT4 experts")
    if release.needs_own_code and not options.trust_remote_code:
        raise DeployError(
            f"the tokenizer of {release.name} is Python code: read it, and add "
            f"{argument('trust_remote_code', True)} "
            "if you trust it"
        )
    _check_source(form, engine, source, fit)
    if options.check_script is not None:
        _check_answers(form, source)
    if form in ON_A_CLUSTER and options.image_name.startswith("localhost/"):
        local = options.image_name.partition(":")[0]
        recipe = "packaging/Containerfile.cpu" if engine == "cpu" else "packaging/Containerfile.gpu"
        raise DeployError(
            f"a cluster cannot pull {local}: build {recipe}, push it to a registry and name it with "
            f"{argument('image')}"
        )
    if fit.num_nodes > 1:
        _check_nodes(form, source, fit)


def _check_texts(options: DeployOptions) -> None:
    """Refuse names that a cluster, a registry or podman would not take, or would take for something else."""
    check_name(options.name)
    if options.namespace is not None:
        check_namespace(options.namespace)
    if options.api_key_secret is not None:
        check_object_name(argument("api_key_secret") + " ", options.api_key_secret)
    if options.hf_secret is not None:
        check_object_name(argument("hf_secret") + " ", options.hf_secret)
    check_image(argument("image") + " ", options.image_name)
    for text in options.tolerations:
        parse_toleration(text)
    parse_node_selector([f"{key}={value}" for key, value in options.node_selector.items()])


def _check_source(form: Form, engine: Engine, source: ModelSource, fit: Fit) -> None:
    scheme = source.scheme
    if form in ON_A_CLUSTER:
        if scheme == "file":
            raise DeployError(
                f"{form} pods do not see {source.rest}; use {argument('model')} pvc://, oci:// or hf://"
            )
    elif scheme not in ("file", "hf"):
        raise DeployError(
            f"{form} mounts a folder: {argument('model')} file:///PATH or hf://ORG/NAME, not {source.uri}"
        )
    if scheme == "file":
        check_folder(source.uri, source.rest)
    elif scheme == "hf":
        check_repository(f"{argument('model')} hf://", source.rest)
    elif scheme == "pvc":
        check_claim(source.uri, *source.claim)
    else:
        check_image(f"{argument('model')} oci://", source.rest)
    if scheme == "hf" and engine == "cpu":
        raise DeployError(
            f"moe4 serve reads a folder: give {argument('model')} pvc://, oci:// or file:///PATH, not hf://"
        )


def _check_answers(form: Form, source: ModelSource) -> None:
    """Refuse a check of the answers where the form, or the place of the weights, cannot hold it."""
    if form not in CHECKS_ANSWERS:
        raise DeployError(
            f"{argument('check_answers')} goes with {', '.join(CHECKS_ANSWERS)}, not {form}: once it runs, "
            "ask it with `moe4 smoke URL --probe RELEASE`"
        )
    if source.scheme == "hf":
        raise DeployError(
            f"{argument('check_answers')} reads moe4-probe.json beside the weights: give "
            f"{argument('model')} pvc:// or oci://, "
            f"not {source.uri}"
        )


def _check_nodes(form: Form, source: ModelSource, fit: Fit) -> None:
    """Refuse what the form cannot do over several machines."""
    layout, nodes = fit.layout, fit.num_nodes
    machines = f"{layout.num_gpus} x {fit.device.name} are {nodes} machines"
    if form not in ("kserve", "llmd", "leaderworkerset"):
        raise DeployError(f"{machines}; {form} runs on one: use kserve, llmd or leaderworkerset")
    if form == "kserve" and nodes > 2:
        raise DeployError(
            f"{machines}; KServe does not number its workers, so vLLM can have only one: use leaderworkerset"
        )
    if form != "llmd":
        if layout.data > 1 or layout.tensor != fit.device.per_node:
            raise DeployError(
                f"{machines}; {form} needs tensor parallel {fit.device.per_node} in each "
                f"and pipeline parallel {nodes} between them, not {layout.describe()}"
            )
        if source.scheme not in ("pvc", "oci"):
            raise DeployError(f"{machines}; {form} over several takes pvc:// and oci:// only")
    if form == "llmd" and (layout.data == 1 or layout.tensor > 1 or not layout.expert_parallel):
        raise DeployError(
            f"{machines}; KServe 0.20 has a template for data and expert parallel workers only: use "
            f"{argument('data_parallel', layout.num_gpus)} and {argument('expert_parallel', True)}"
        )
