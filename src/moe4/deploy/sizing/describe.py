"""Sizing as text and as JSON."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe4.deploy.sizing.choose import Survey
from moe4.deploy.sizing.fit import (
    COMFORTABLE,
    Fit,
    Verdict,
    load_seconds,
    max_tensor_parallel,
    startup_seconds,
)
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.escape import visible
from moe4.units import GIB, gigabytes


@dataclass(frozen=True, kw_only=True, slots=True)
class BytesRead:
    """What a decoded token reads of the weights."""

    experts: int
    rest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseFacts:
    """What is true of a release on any machine, under its names in `moe4 fit --json`."""

    name: str
    where: str
    read_from: str
    group_size: int | None
    bytes: int
    elements: int
    bytes_by_dtype: dict[str, int]
    expert_bytes: int
    bytes_read_per_token: BytesRead
    kv_bytes_per_token: int
    kv_replicated: bool
    max_position_embeddings: int | None
    max_tensor_parallel: int
    max_tensor_parallel_with_plugin: int
    disk_bytes_per_second: float
    load_seconds: int
    startup_seconds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FitFacts:
    """One fit, under its names in `moe4 fit --json`."""

    device: str
    this_machine: bool
    device_memory_bytes: int
    gpus: int
    nodes: int
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    expert_parallel: bool
    verdict: Verdict
    reason: str
    weight_bytes_per_gpu: int
    replicated_bytes_per_gpu: int
    working_bytes_per_gpu: int
    max_model_len: int
    concurrency: int
    cache_tokens: int
    full_length_sequences: int
    longest_conversation: int
    ceiling_tokens_per_second: float | None
    ceiling_batch_tokens_per_second: float | None


def release_facts(release: ReleaseSize, disk: float) -> ReleaseFacts:
    """Return what is true of the release on any machine."""
    return ReleaseFacts(
        name=release.name,
        where=release.where,
        read_from=release.origin,
        group_size=release.group_size,
        bytes=release.num_bytes,
        elements=release.num_elements,
        bytes_by_dtype=release.bytes_by_dtype,
        expert_bytes=sum(layer.experts for layer in release.layers),
        bytes_read_per_token=BytesRead(experts=release.expert_bytes_read, rest=release.dense_bytes_read),
        kv_bytes_per_token=release.kv_bytes_per_token,
        kv_replicated=release.has_latent_cache,
        max_position_embeddings=release.max_position_embeddings,
        max_tensor_parallel=max_tensor_parallel(release),
        max_tensor_parallel_with_plugin=max_tensor_parallel(release, plugin=True),
        disk_bytes_per_second=disk,
        load_seconds=round(load_seconds(release, disk)),
        startup_seconds=startup_seconds(release, disk),
    )


def fit_facts(item: Fit) -> FitFacts:
    """Return one fit as JSON has it."""
    return FitFacts(
        device=item.device.name,
        this_machine=item.device.is_here,
        device_memory_bytes=item.device.memory_bytes,
        gpus=0 if item.device.kind == "cpu" else item.layout.num_gpus,
        nodes=item.num_nodes,
        tensor_parallel=item.layout.tensor,
        pipeline_parallel=item.layout.pipeline,
        data_parallel=item.layout.data,
        expert_parallel=item.layout.expert_parallel,
        verdict=item.verdict,
        reason=item.reason,
        weight_bytes_per_gpu=item.weight_bytes,
        replicated_bytes_per_gpu=item.whole_bytes,
        working_bytes_per_gpu=item.working_bytes,
        max_model_len=item.max_model_len,
        concurrency=item.concurrency,
        cache_tokens=item.cache_tokens,
        full_length_sequences=item.sequences,
        longest_conversation=item.longest,
        ceiling_tokens_per_second=item.tokens_per_second and round(item.tokens_per_second, 1),
        ceiling_batch_tokens_per_second=item.batch_tokens_per_second
        and round(item.batch_tokens_per_second, 1),
    )


def print_release(console: Console, release: ReleaseSize, disk: float) -> None:
    """Print the facts of a release."""
    facts = release_facts(release, disk)
    how = "its files' headers" if release.origin == "headers" else "its config: the W4A16 release it becomes"
    group = f", groups of {release.group_size}" if release.group_size else ""
    cache = (
        "each GPU holds all of it under tensor parallelism" if release.has_latent_cache else "split by heads"
    )
    most, with_plugin = facts.max_tensor_parallel, facts.max_tensor_parallel_with_plugin
    ranks = f"tensor parallel {most} at most"
    if with_plugin > most:
        ranks = f"tensor parallel {most or 'not even 1'} at most on GPUs, {with_plugin} with moe4's plugin"
    lines = [
        f"{release.name}: {gigabytes(release.num_bytes)}{group} (from {how})",
        f"  routed experts {gigabytes(facts.expert_bytes)}, the rest "
        f"{gigabytes(release.num_bytes - facts.expert_bytes)}",
        f"  a decoded token reads {gigabytes(release.expert_bytes_read)} of experts and "
        f"{gigabytes(release.dense_bytes_read)} of the rest",
        f"  cache {release.kv_bytes_per_token:,} bytes a token; {cache}",
        f"  {ranks}; load {facts.load_seconds} s at {disk / 1e9:g} GB/s of disk",
    ]
    for line in lines:
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def print_fits(console: Console, fits: list[Fit]) -> None:
    """Print fits as a table, one row each."""
    batch = fits[0].concurrency
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("machine")
    for name in ("layout", "weights/GPU", "cache", "longest", "conv.", "tok/s <", f"tok/s < at {batch}"):
        if batch > 1 or not name.endswith(f"at {batch}"):
            table.add_column(name, justify="left" if name == "layout" else "right", no_wrap=True)
    table.add_column("verdict")
    for item in fits:
        cpu = item.device.kind == "cpu"
        machine = item.device.name if cpu else f"{item.layout.num_gpus} x {item.device.name}"
        if item.num_nodes > 1:
            machine += f", {item.num_nodes} machines"
        row = [machine, "" if cpu else item.layout.describe(), f"{item.weight_bytes / GIB:.1f} GiB"]
        row += [f"{item.cache_tokens:,}", f"{item.longest:,}", str(item.sequences)]
        row.append(f"{item.tokens_per_second:.0f}" if item.tokens_per_second else "")
        if batch > 1:
            row.append(f"{item.batch_tokens_per_second:.0f}" if item.batch_tokens_per_second else "")
        row.append(item.verdict if item.works else f"{item.verdict}: {item.reason}")
        table.add_row(*(Text(visible(cell)) for cell in row))  # Text: brackets are no markup
    console.print(table, highlight=False)


def print_survey(console: Console, survey: Survey) -> None:
    """Print the table, the smallest deployment and the one to recommend."""
    print_fits(console, survey.fits)
    for label, item in (("smallest that works", survey.smallest), ("recommended", survey.recommended)):
        text = "none of the table" if item is None else _sentence(item)
        console.print(visible(f"{label}: {text}"), markup=False, highlight=False, soft_wrap=True)
    length = survey.fits[0].max_model_len
    console.print(
        f"cache and conversations: tokens, and conversations of {length} tokens at once; comfortable is "
        f"{COMFORTABLE} or more. tok/s is a ceiling: weights read once a token at full bandwidth.",
        highlight=False,
        soft_wrap=True,
    )


def _sentence(item: Fit) -> str:
    return (
        f"{item.layout.num_gpus} x {item.device.name} ({item.layout.describe()}), "
        f"{item.sequences} conversations of {item.max_model_len} tokens at once"
    )
