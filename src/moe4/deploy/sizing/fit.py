"""Whether a release fits: weights on each GPU, room for the cache, speed's ceiling, time to load.

vLLM's rules: a GPU may be filled to `GPU_MEMORY_SHARE`; what weights and working memory leave is cache; MLA's
cache is whole on every tensor-parallel rank; a pipeline stage caches its own layers only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from moe4.arguments import argument
from moe4.deploy.sizing.machines import Device
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.errors import DeployError
from moe4.units import GIB
from moe4.vllm_facts.expert_splits import one_group_a_rank, serving_advice
from moe4.vllm_facts.versions import GPU_MEMORY_SHARE

# Activations of a full batch, CUDA graphs, NCCL's buffers and the context: an allowance, not a measurement.
WORKING_BYTES = 4 * GIB
# On CPUs: Python, torch, activations and the operating system.
CPU_WORKING_BYTES = 4 * GIB
# A cache that holds this many conversations of full length is called comfortable.
COMFORTABLE = 4
START_SECONDS = 600  # imports, profiling, compiling, CUDA graphs

Verdict = Literal["no", "marginal", "fits", "comfortable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a model is split over processes, one GPU each.

    data: copies of everything but the routed experts, which are then split by number (`expert_parallel`).
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert_parallel: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs in all."""
        return self.tensor * self.pipeline * self.data

    def describe(self) -> str:
        """Return it as `TP8 x PP2`."""
        parts = [("TP", self.tensor), ("PP", self.pipeline), ("DP", self.data)]
        named = " x ".join(f"{name}{size}" for name, size in parts if size > 1) or "1 GPU"
        return f"{named}, EP" if self.expert_parallel else named


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a release does on GPUs of one kind in one layout.

    weight_bytes, whole_bytes: of the fullest GPU, in all and what is not split.
    cache_tokens: over all of the deployment; data-parallel ranks cache different conversations.
    tokens_per_second: ceiling of one stream from the memory's bandwidth; None where it is not known.
    """

    device: Device
    layout: Layout
    max_model_len: int
    concurrency: int
    verdict: Verdict
    reason: str
    weight_bytes: int
    whole_bytes: int
    working_bytes: int
    free_bytes: int
    cache_tokens: int
    tokens_per_second: float | None
    batch_tokens_per_second: float | None

    @property
    def sequences(self) -> int:
        """Conversations of `max_model_len` that the cache holds at once."""
        return self.cache_tokens // self.max_model_len

    @property
    def longest(self) -> int:
        """Tokens the cache has room for in one conversation, in whole blocks of 64; 0 if none."""
        return self.cache_tokens // self.layout.data // 64 * 64

    @property
    def num_nodes(self) -> int:
        """Machines needed."""
        return -(-self.layout.num_gpus // self.device.per_node)

    @property
    def works(self) -> bool:
        """Whether vLLM would start and hold what was asked for."""
        return self.verdict in ("fits", "comfortable")


def check_layout(
    release: ReleaseSize, layout: Layout, device: Device | None = None, *, plugin: bool = False
) -> str | None:
    """Return why vLLM would refuse to split the release so, or None.

    On a `device` that vLLM runs Marlin on, so is a split refused whose answers would be wrong without moe4's
    `plugin`.
    """
    tensor, name = layout.tensor, release.name
    if min(tensor, layout.pipeline, layout.data) < 1:
        return "parallel sizes are 1 or more"
    if layout.pipeline > len(release.layers):
        return f"pipeline {layout.pipeline} is more than the {len(release.layers)} layers of {name}"
    if release.num_heads % tensor:
        return f"tensor parallel {tensor} does not divide the {release.num_heads} attention heads of {name}"
    for what, groups in release.row_groups.items():
        split_by_number = layout.expert_parallel and "expert" in what
        if groups % tensor and not split_by_number:
            sizes = [n for n in range(1, groups + 1) if groups % n == 0 and release.num_heads % n == 0]
            return (
                f"tensor parallel {tensor} does not divide {what} of {name}, {groups} groups of "
                f"{release.group_size} codes; use one of {', '.join(map(str, sizes))}"
            )
    ranks = tensor * layout.data
    if layout.data > 1 and not layout.expert_parallel:
        return "data parallel copies need expert parallelism, or each would hold all experts"
    if layout.expert_parallel and ranks > release.num_experts:
        return f"expert parallel over {ranks} GPUs is more than the {release.num_experts} experts of {name}"
    return check_groups(release, layout) if device and device.uses_marlin and not plugin else None


def check_groups(release: ReleaseSize, layout: Layout) -> str | None:
    """Return why a vLLM without moe4's plugin would answer wrongly on GPUs, and what to do, or None."""
    if release.group_size is None or not release.num_experts:
        return None
    split = release.expert_width, release.group_size, 1 if layout.expert_parallel else layout.tensor
    found = one_group_a_rank(*split)
    return f"{found}; {serving_advice(*split)}" if found else None


def max_tensor_parallel(release: ReleaseSize, *, plugin: bool = False) -> int:
    """Return the most tensor-parallel ranks for the release on GPUs; 0 if even one would answer wrongly."""
    sizes = range(1, release.num_heads + 1)
    layouts = (Layout(tensor=size) for size in sizes if check_layout(release, Layout(tensor=size)) is None)
    return max((item.tensor for item in layouts if plugin or check_groups(release, item) is None), default=0)


def split_layers(num_layers: int, stages: int) -> list[int]:
    """Return the layers of each pipeline stage, as vLLM deals them: the last stages but one get the rest."""
    layers = [num_layers // stages] * stages
    for position in range(num_layers % stages):
        layers[-2 - position] += 1
    return layers


def fit(
    release: ReleaseSize,
    device: Device,
    layout: Layout,
    *,
    max_model_len: int | None = None,
    concurrency: int = 1,
    working_bytes: int | None = None,
    plugin: bool = False,
) -> Fit:
    """Say how the release fits. Raises DeployError for a length or concurrency that is none.

    plugin: vLLM has moe4's plugin there.
    """
    length = release.max_position_embeddings if max_model_len is None else max_model_len
    if not 1 <= length <= release.max_position_embeddings:
        raise DeployError(
            f"{argument('max_model_len', length)} is not in 1..{release.max_position_embeddings}, "
            f"the lengths {release.name} was made for"
        )
    sizes = layout.tensor, layout.pipeline, layout.data
    if min(sizes) < 1:
        raise DeployError(f"parallel sizes of {' x '.join(map(str, sizes))} GPUs: each must be at least 1")
    if concurrency < 1:
        raise DeployError(f"{argument('concurrency', concurrency)} is not at least 1")
    on_cpu = device.kind == "cpu"
    working = working_bytes if working_bytes is not None else CPU_WORKING_BYTES if on_cpu else WORKING_BYTES
    usable = int(device.memory_bytes * GPU_MEMORY_SHARE)
    if layout.pipeline > len(release.layers):
        num_layers = f"the {len(release.layers)} layers of {release.name}"
        raise DeployError(f"pipeline parallel {layout.pipeline} is more than {num_layers}")
    stages = list(_stages(release, layout))
    weight_bytes, whole_bytes, _ = max(stages)
    tokens = min((usable - weights - working) // max(1, cache) for weights, _, cache in stages)
    cache_tokens = max(0, tokens) * layout.data
    result = Fit(
        device=device,
        layout=layout,
        max_model_len=length,
        concurrency=concurrency,
        verdict="no",
        reason="",
        weight_bytes=weight_bytes,
        whole_bytes=whole_bytes,
        working_bytes=working,
        free_bytes=usable - weight_bytes - working,
        cache_tokens=cache_tokens,
        tokens_per_second=_ceiling(release, device, layout, 1),
        batch_tokens_per_second=_ceiling(release, device, layout, concurrency),
    )
    verdict, reason = _judge(release, result, plugin)
    return replace(result, verdict=verdict, reason=reason)


def _judge(release: ReleaseSize, fit: Fit, plugin: bool) -> tuple[Verdict, str]:
    refusal = check_layout(release, fit.layout, fit.device, plugin=plugin)
    if refusal:
        return "no", refusal
    if fit.free_bytes <= 0:
        needed = (fit.weight_bytes + fit.working_bytes) / GIB
        usable = fit.device.memory_bytes * GPU_MEMORY_SHARE / GIB
        return "no", f"needs {needed:.1f} GiB before any cache; only {usable:.1f} may be used"
    if fit.longest < fit.max_model_len:
        return (
            "marginal",
            f"the cache holds {fit.longest} tokens, not one conversation of {fit.max_model_len}",
        )
    if fit.sequences < fit.concurrency:
        return "marginal", f"the cache holds {fit.sequences} conversations at once, not {fit.concurrency}"
    held = f"the cache holds {fit.sequences} conversations of {fit.max_model_len} tokens"
    if fit.cache_tokens < COMFORTABLE * fit.max_model_len:
        return "fits", held
    return "comfortable", held


def _stages(release: ReleaseSize, layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Yield a GPU's weights, those of them it does not share, and cache bytes a token, by pipeline stage."""
    counts = split_layers(len(release.layers), layout.pipeline)
    cache_layer = release.kv_bytes_per_token / len(release.layers)
    if not release.has_latent_cache:
        cache_layer /= min(layout.tensor, release.num_kv_heads)
    experts_of = release.num_experts or 1
    share = -(-experts_of // (layout.tensor * layout.data)) / experts_of  # the fullest rank's
    first = 0
    for stage, count in enumerate(counts):
        layers = release.layers[first : first + count]
        first += count
        split = sum(layer.split for layer in layers)
        if stage == 0:
            split += release.embedding_bytes
        if stage == layout.pipeline - 1:
            split += release.head_bytes or (release.embedding_bytes if layout.pipeline > 1 else 0)
        experts = sum(layer.experts for layer in layers)
        whole = sum(layer.whole for layer in layers) + release.other_bytes
        expert_share = share if layout.expert_parallel else 1 / layout.tensor
        yield (
            math.ceil(experts * expert_share + split / layout.tensor + whole),
            whole,
            math.ceil(cache_layer * count),
        )


def _ceiling(release: ReleaseSize, device: Device, layout: Layout, batch: int) -> float | None:
    """Return the tokens a second that reading the weights allows, with `batch` conversations decoded at once.

    Experts are taken to be chosen evenly and independently. Nothing but weights is counted: no cache, no
    network between GPUs, no arithmetic.
    """
    if not device.bandwidth:
        return None
    together = -(-batch // layout.pipeline)  # the stages work on different conversations
    missed = (1 - release.experts_per_token / release.num_experts) ** together if release.num_experts else 0.0
    experts = sum(layer.experts for layer in release.layers) * (1 - missed)
    split = sum(layer.split for layer in release.layers) + (release.head_bytes or release.embedding_bytes)
    whole = sum(layer.whole for layer in release.layers) + release.other_bytes
    read = experts / (layout.tensor * layout.data) + split / layout.tensor + whole
    return batch * device.bandwidth / read


def read_speed(gigabytes: float) -> float:
    """Return the bytes a second of a `--disk` in GB/s. Raises DeployError."""
    if not 0.001 <= gigabytes <= 1000:
        raise DeployError(f"{argument('disk', gigabytes)} is not in 0.001..1000 GB/s")
    return gigabytes * 1e9


def load_seconds(release: ReleaseSize, disk_bytes_per_second: float) -> float:
    """Return the time to read all weights from a disk of this speed."""
    return release.num_bytes / disk_bytes_per_second


def startup_seconds(release: ReleaseSize, disk_bytes_per_second: float) -> int:
    """Return the time a start-up probe gives: twice the load, and what vLLM does besides."""
    seconds = 2 * load_seconds(release, disk_bytes_per_second) + START_SECONDS
    return math.ceil(seconds / 60) * 60


def smallest_gpus(release: ReleaseSize, device: Device) -> str:
    """Return in words how many of these GPUs hold the release and one short conversation."""
    for num_gpus in (1, 2, 4, 8, 16, 32, 64):
        tensor = min(num_gpus, device.per_node)
        layout = Layout(tensor=tensor, pipeline=num_gpus // tensor)
        if fit(release, device, layout, max_model_len=1, plugin=True).works:
            return f"{num_gpus} x {device.name} hold it ({layout.describe()})"
    return f"64 x {device.name} are not enough either"
