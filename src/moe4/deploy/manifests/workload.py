"""A deployment's values, each with its reason: the same whatever form they are written in."""

import math
from dataclasses import dataclass, field

from moe4.deploy.manifests.documents import Noted
from moe4.deploy.manifests.options import ON_A_CLUSTER, DeployOptions
from moe4.deploy.sizing.fit import CPU_WORKING_BYTES, Fit, load_seconds, startup_seconds
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.serve.guard import guard_path
from moe4.units import GIB, gigabytes
from moe4.vllm_facts import flags

MODEL_PATH = "/mnt/models"  # where KServe mounts models; ours do the same
CACHE_PATH = "/cache"
PROBE_PERIOD = 10
CPU_CACHED_CONVERSATIONS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """One option of the server's command line. `value` None: a switch."""

    flag: str
    value: str | None
    why: str

    @property
    def text(self) -> str:
        """`--flag=value`."""
        return self.flag if self.value is None else f"{self.flag}={self.value}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PodVariable:
    """One environment variable: a value, or `secret`, whose key is `token`."""

    name: str
    value: str | None = None
    secret: str | None = None
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Everything a form needs. Sizes are those of one machine."""

    options: DeployOptions
    release: ReleaseSize
    fit: Fit
    command: tuple[str, ...]
    model: str
    arguments: tuple[Argument, ...]
    variables: tuple[PodVariable, ...]
    gpus: int
    gpus_why: str
    cpus: int
    memory_gib: int
    memory_why: str
    shm_gib: int
    shm_why: str
    startup_seconds: int
    startup_why: str
    cache_gib: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """That of all objects, and of the model in requests."""
        return self.options.name

    @property
    def failure_threshold(self) -> Noted:
        """The start-up probe's."""
        return Noted(self.startup_seconds // PROBE_PERIOD, self.startup_why)


def build_workload(options: DeployOptions, release: ReleaseSize, fit: Fit) -> Workload:
    """Derive a deployment's values. The options have been checked."""
    on_cpu = options.engine == "cpu"
    gpus = 0 if on_cpu else min(fit.layout.num_gpus, fit.device.per_node)
    from_hub = options.source.scheme == "hf"
    load = load_seconds(release, options.disk)
    origin = "download and load" if from_hub else "load"
    if on_cpu:
        kv_gib = _cpu_cache_gib(release, fit)
        memory = math.ceil((fit.weight_bytes + CPU_WORKING_BYTES) / GIB) + kv_gib
        rest = CPU_WORKING_BYTES // GIB
        memory_why = f"in GiB: weights {fit.weight_bytes / GIB:.1f}, cache {kv_gib}, the rest {rest}"
        shm, shm_why = 1, "vLLM's processes pass messages through it"
    else:
        shm = max(8, 2 * gpus)
        shm_why = "NCCL and vLLM pass data through it; the default of 64 MiB is too little"
        loading = math.ceil(fit.weight_bytes * gpus / 4 / GIB)
        memory = _round_up(shm + 8 * gpus + loading, 8)
        memory_why = (
            f"8 GiB a GPU's process, {shm} of shared memory, a quarter of the weights while they load"
        )
    return Workload(
        options=options,
        release=release,
        fit=fit,
        command=("moe4", "serve") if on_cpu else ("vllm", "serve"),
        model=options.source.rest if from_hub else MODEL_PATH,
        arguments=tuple(_arguments(options, release, fit)),
        variables=tuple(_variables(options, release, fit)),
        gpus=gpus,
        gpus_why=f"{fit.weight_bytes / GIB:.1f} GiB of weights each, {fit.reason}",
        cpus=8 if on_cpu else 4 + 2 * gpus,
        memory_gib=memory,
        memory_why=memory_why,
        shm_gib=shm,
        shm_why=shm_why,
        startup_seconds=startup_seconds(release, options.disk),
        startup_why=(
            f"x {PROBE_PERIOD} s: twice the {load:.0f} s to {origin} {gigabytes(release.num_bytes)} "
            f"at {options.disk / 1e9:g} GB/s, and ten minutes"
        ),
        cache_gib=math.ceil(release.num_bytes * 1.1 / GIB) + 1 if from_hub else 0,
        notes=_notes(options, release, fit),
    )


def _arguments(options: DeployOptions, release: ReleaseSize, fit: Fit) -> list[Argument]:
    layout = fit.layout
    chosen = [
        Argument(flag=flags.MODEL_NAME, value=options.name, why="what clients put into `model`"),
        Argument(flag=flags.MAX_MODEL_LEN, value=str(fit.max_model_len), why=fit.reason),
    ]
    if options.form != "llmd":
        chosen[:0] = [
            Argument(flag=flags.HOST, value="0.0.0.0", why="the container's own network"),
            Argument(flag=flags.PORT, value=str(options.port), why="the probes and the service use it"),
        ]
    else:
        chosen.pop(0)  # KServe's template gives it, from spec.model.name
    set_by_kserve = options.form == "llmd" or (options.form == "kserve" and fit.num_nodes > 1)
    splits = [
        (flags.TENSOR_PARALLEL, layout.tensor, "each matrix is split over so many GPUs"),
        (flags.PIPELINE_PARALLEL, layout.pipeline, "the layers are split over so many machines"),
        (flags.DATA_PARALLEL, layout.data, "copies of all but the routed experts"),
    ]
    if not set_by_kserve:
        chosen += [Argument(flag=flag, value=str(size), why=why) for flag, size, why in splits if size > 1]
        if layout.expert_parallel:
            why = "routed experts are split by number"
            chosen.append(Argument(flag=flags.EXPERT_PARALLEL, value=None, why=why))
    if release.uses_kimi_calls and options.engine != "cpu":  # moe4 serve sees to it itself
        chosen += [
            Argument(flag=flags.AUTO_TOOLS, value=None, why="without it tools are ignored"),
            Argument(flag=flags.TOOL_PARSER, value=flags.KIMI_PARSER, why="the form in the chat template"),
        ]
        if options.has_our_vllm:
            why = 'with tool_choice "none" the model would still call tools, as text'
            chosen.append(Argument(flag=flags.NO_TOOLS, value=None, why=why))
    if release.needs_own_code:
        why = "Kimi's tokenizer is Python code beside the weights: read it first"
        chosen.append(Argument(flag=flags.TRUST_REMOTE_CODE, value=None, why=why))
    return chosen + _guard(options)


def _guard(options: DeployOptions) -> list[Argument]:
    """Return what puts the API key on every route, where moe4 is in the image."""
    if not options.api_key_secret or not options.guards_all:
        return []
    open_metrics = options.form in ON_A_CLUSTER
    why = "the key on every route but health checks"
    if open_metrics:
        why += " and /metrics: Prometheus has no key"
    if options.engine == "cpu":  # moe4 serve has it
        return [Argument(flag="--open-metrics", value=None, why=why)] if open_metrics else []
    return [Argument(flag=flags.MIDDLEWARE, value=guard_path(open_metrics=open_metrics), why=why)]


def _variables(options: DeployOptions, release: ReleaseSize, fit: Fit) -> list[PodVariable]:
    chosen = [PodVariable(name="HOME", value="/tmp", why="the user has no home; vLLM's caches go there")]
    if options.engine == "cpu":
        space = str(_cpu_cache_gib(release, fit))
        why = f"GiB of cache, {release.kv_bytes_per_token} bytes a token"
        chosen.append(PodVariable(name="VLLM_CPU_KVCACHE_SPACE", value=space, why=why))
    if options.source.scheme == "hf":
        if options.form != "llmd":
            chosen.append(PodVariable(name="HF_HOME", value=CACHE_PATH, why="downloaded once, kept"))
        if options.hf_secret:
            chosen.append(
                PodVariable(name="HF_TOKEN", secret=options.hf_secret, why="to download the weights")
            )
    else:
        chosen.append(
            PodVariable(name="HF_HUB_OFFLINE", value="1", why="everything is in the model's folder")
        )
    if options.api_key_secret:
        why = "clients send it as a bearer token"
        chosen.append(PodVariable(name="VLLM_API_KEY", secret=options.api_key_secret, why=why))
    return chosen


def _notes(options: DeployOptions, release: ReleaseSize, fit: Fit) -> tuple[str, ...]:
    machine = fit.device.name if options.engine == "cpu" else f"{fit.layout.num_gpus} x {fit.device.name}"
    split = "" if options.engine == "cpu" else f", {fit.layout.describe()}"
    lines = [
        f"{release.name}, {gigabytes(release.num_bytes)}, on {machine}{split}: {fit.reason}.",
        "Made by `moe4 deploy`; every value comes from the release or from an option.",
    ]
    if not options.api_key_secret:
        lines.append("No API key: whoever reaches the port may use the model (--api-key-secret).")
    elif not options.guards_all:
        lines.append(
            "The API key guards /v1, /v2, /inference and /cohere alone: POST /invocations runs the model "
            "without it, /tokenize and /metrics answer. An image with moe4's plugin closes them "
            "(docs/deployment.md)."
        )
    return tuple(lines)


def _cpu_cache_gib(release: ReleaseSize, fit: Fit) -> int:
    """Return the cache's size: for what was asked, or a few conversations where they fit."""
    wanted = max(fit.concurrency, min(CPU_CACHED_CONVERSATIONS, fit.sequences))
    return max(1, math.ceil(wanted * fit.max_model_len * release.kv_bytes_per_token / GIB))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
