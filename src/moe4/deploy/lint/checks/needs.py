"""What a server needs to hold and run its model: GPUs, memory, /dev/shm, parallel sizes, tools."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.place import Place
from moe4.deploy.lint.quantities import is_less
from moe4.deploy.lint.server import DescribedServer
from moe4.deploy.manifests.images import has_plugin
from moe4.deploy.sizing.fit import Fit, Layout, check_groups, check_layout, fit, smallest_gpus
from moe4.deploy.sizing.machines import DEVICES, Device, cpu_server
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.serve.sizes import read_size
from moe4.units import GIB
from moe4.vllm_facts import flags

TOOL_FLAGS = (flags.AUTO_TOOLS, flags.TOOL_PARSER)
OMNI = "--omni"  # of vllm-omni, whose own file says how GPUs are used
MIN_SHM_BYTES = GIB  # what KServe's own samples have
LEAST_BYTES = 2 * GIB  # of the server, and of each GPU's process: models of 2B run in 7 GiB
PROCESS_BYTES = 4 * GIB  # of host memory, a GPU's worker process at the least
BASE_BYTES = 8 * GIB
CPU_BASE_BYTES = 2 * GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What is known beside the files. Without a release sizes are not judged.

    device: the GPU that is there; the largest of the table if None.
    disk: bytes a second the weights are loaded at, at best.
    plugin: all images have moe4's plugin in vLLM, whatever they are called.
    """

    release: ReleaseSize | None = None
    device: Device | None = None
    disk: float = 1e9
    plugin: bool = False

    def has_plugin(self, server: DescribedServer) -> bool:
        """Say whether the server's vLLM is known to have moe4's plugin."""
        return self.plugin or server.by_moe4 or any(has_plugin(str(image.value)) for image in server.images)


def check_server(server: DescribedServer, context: Context) -> Iterator[Finding]:
    """Yield what is wrong with a server's GPUs, memory and options."""
    yield from _gpus(server, context)
    yield from _parallel(server, context)
    yield from _memory(server, context)
    yield from _shm(server)
    yield from _tools(server, context)
    yield from _length(server, context)


def layout_of(server: DescribedServer) -> Layout:
    """Return how the server splits its model."""
    return Layout(
        tensor=server.size("tensor"),
        pipeline=server.size("pipeline"),
        data=server.size("data"),
        expert_parallel=flags.EXPERT_PARALLEL in server.flags,
    )


def _gpus(server: DescribedServer, context: Context) -> Iterator[Finding]:
    place = server.resources or server.place
    if server.is_cpu:
        return
    amounts = {(side, name): amount for side, name, amount in server.gpu_amounts()}
    if server.claims:
        return
    if not server.gpus and not server.all_gpus and not server.partial and not server.is_helper:
        yield place.find("gpu-missing", "vLLM for GPUs is given none", "ask for GPUs in requests and limits")
        return
    for name in {name for _, name in amounts}:
        request, limit = amounts.get(("requests", name)), amounts.get(("limits", name))
        # Kubernetes takes a limit for the request that is not given.
        if request is not None and request != limit and server.resources is not None:
            yield server.resources.find(
                "gpu-requests-limits",
                f"{name} is {request or 'absent'} in requests and {limit or 'absent'} in limits",
                "write the same number in both",
                None if limit is None else (server.resources / "requests" / name).writer(str(limit)),
            )
    if context.release is None or (not server.gpus and not server.all_gpus):
        return
    found = _fit(server, context, context.release)
    if found is not None and not found.works:
        gpus = found.layout.num_gpus
        yield place.find(
            "gpu-too-few",
            f"{context.release.name} does not fit on {gpus} x {found.device.name}: {found.reason}",
            f"see `moe4 fit`; {smallest_gpus(context.release, found.device)}",
        )


def _fit(server: DescribedServer, context: Context, release: ReleaseSize) -> Fit | None:
    """Return the fit on the device that is there, or on the largest of the table; None if it is not known."""
    if server.has_unknown_sizes:
        return None
    nvidia = (item for item in DEVICES.values() if item.kind == "nvidia")
    device = context.device or max(nvidia, key=lambda item: item.memory_bytes)
    layout = layout_of(server)
    if not server.has_sizes and server.gpus > 1:
        layout = replace(layout, tensor=server.gpus)
    plugin = context.has_plugin(server)
    if check_layout(release, layout, device, plugin=plugin) is not None:
        return None  # another rule says so
    length = read_length(server)
    if length is None and flags.MAX_MODEL_LEN in server.flags:
        length = 1  # it is not seen: the weights and a token must fit
    if length is not None and not 1 <= length <= release.max_position_embeddings:
        return None
    return fit(release, device, layout, max_model_len=length, plugin=plugin)


def _parallel(server: DescribedServer, context: Context) -> Iterator[Finding]:
    if server.is_cpu or server.is_helper:
        return
    if server.has_unknown_sizes:
        unseen = ", ".join(f"{flag} {text}" for flag, text in server.unknown_sizes())
        why = f"{unseen} is set elsewhere, so the parallel sizes are not judged"
        yield server.flags_place.find("not-judged", why, "lint it together with the file that sets it")
        return
    release, layout = context.release, layout_of(server)
    if not server.has_sizes and not server.partial:
        alone = release is None or any(
            fit(release, device, Layout(), max_model_len=1, plugin=True).works for device in DEVICES.values()
        )
        several = (server.gpus > 1 or server.all_gpus) and not server.counts_otherwise
        if (several and OMNI not in server.flags) or not (alone or server.claims):
            needs = "" if alone else f": {release.name if release else ''} fits on no single GPU"
            yield server.flags_place.find(
                "parallel-missing",
                f"no parallel size is given, so one GPU is used{needs}",
                "give --tensor-parallel-size, the number of GPUs",
            )
    elif (
        server.has_sizes
        and server.gpus
        and layout.num_gpus != server.replica_gpus
        and not server.counts_otherwise
    ):
        machines = f" of each of {server.nodes} machines" if server.nodes > 1 else ""
        machines = machines if server.total_gpus is None else f" of {server.total_gpus} in its cluster"
        yield server.flags_place.find(
            "parallel-mismatch",
            f"{layout.describe()} takes {layout.num_gpus} GPUs, the server has {server.gpus}{machines}",
            "make the parallel sizes multiply to the GPUs",
        )
    refusal = check_layout(release, layout) if release is not None else None
    if refusal:
        yield server.flags_place.find("parallel-divide", refusal, "see `moe4 fit`")
    elif release is not None and not context.has_plugin(server):
        yield from _one_group(server, context, release)


def _one_group(server: DescribedServer, context: Context, release: ReleaseSize) -> Iterator[Finding]:
    on_marlin = context.device is None or context.device.uses_marlin
    image_unseen = server.partial and not server.images
    found = check_groups(release, layout_of(server)) if on_marlin and not image_unseen else None
    if found:
        why, _, advice = found.partition("; ")
        yield server.flags_place.find("parallel-one-group", why, advice)


def _memory(server: DescribedServer, context: Context) -> Iterator[Finding]:
    found = server.memory_bytes
    if found is None or (server.partial and not server.gpus):
        return
    place = server.resources or server.place
    shm = server.shm_bytes
    if server.is_cpu:
        if context.release is None:
            return
        weights = fit(context.release, cpu_server(1.0), Layout(), max_model_len=1).weight_bytes
        needed, what = weights + CPU_BASE_BYTES, "the weights and 2 GiB"
    elif not server.gpus:
        return
    elif context.release is None:
        needed, what = LEAST_BYTES * (1 + server.gpus), f"2 GiB, and 2 for each of {server.gpus} GPUs"
    else:
        needed = BASE_BYTES + shm + PROCESS_BYTES * server.gpus
        what = f"8 GiB, 4 for each of {server.gpus} GPUs" + (
            f" and /dev/shm's {server.shm_size}" if shm else ""
        )
    if found < needed:
        yield place.find(
            "memory-too-small",
            f"{found / GIB:.3g} GiB of host memory is less than {what}: {needed / GIB:.0f} GiB",
            f"ask for at least {needed / GIB:.0f} GiB; `moe4 deploy` derives how much",
        )
    elif found < shm:
        why = f"the {found / GIB:.3g} GiB of memory end before /dev/shm's {server.shm_size} are full"
        yield place.find("memory-too-small", why, "raise the memory, or lower the size", level="warning")


def _shm(server: DescribedServer) -> Iterator[Finding]:
    wanted = "an emptyDir of medium Memory, with a sizeLimit, at /dev/shm"
    if server.on_host:
        wanted = "--shm-size, or shm_size in a compose file"
    repair = _add_shm(server)
    several = server.gpus > 1 or server.all_gpus or server.nodes > 1 or layout_of(server).num_gpus > 1
    alone = not several  # NCCL has nothing to do
    if server.shm is None:
        if server.kind == "ServingRuntime" or not server.partial:
            if server.templated:
                return  # KServe's template has 1 GiB
            why = "NCCL and vLLM need more shared memory than the container's 64 MiB"
            yield (server.container or server.place).find(
                "shm-missing", why, f"add {wanted}", repair, "warning" if alone else None
            )
    elif server.shm_size is None:
        why = "the volume may take half the node's memory, beside the pod's limit"
        yield server.shm.find("shm-unbounded", why, "give it a sizeLimit")
    elif (server.gpus or server.all_gpus) and is_less(server.shm_size, MIN_SHM_BYTES, on_host=server.on_host):
        why = f"{server.shm_size} of shared memory is less than 1 GiB"
        yield server.shm.find("shm-missing", why, f"use {wanted}")


def _tools(server: DescribedServer, context: Context) -> Iterator[Finding]:
    if flags.AUTO_TOOLS in server.flags and flags.TOOL_PARSER not in server.flags and not server.partial:
        why = f"vLLM ends: {flags.AUTO_TOOLS} needs {flags.TOOL_PARSER}"
        yield server.flags[flags.AUTO_TOOLS][1].find("tools-missing", why, f"add {flags.TOOL_PARSER}")
        return
    if context.release is None or not context.release.uses_kimi_calls or server.by_moe4 or server.partial:
        return
    missing = [flag for flag in TOOL_FLAGS if flag not in server.flags]
    if missing:
        yield server.flags_place.find(
            "tools-missing",
            f"{' and '.join(missing)} not given: tools in requests are ignored or refused",
            f"add {flags.AUTO_TOOLS} {flags.TOOL_PARSER}={flags.KIMI_PARSER}",
        )
    elif server.value(flags.TOOL_PARSER) not in (None, flags.KIMI_PARSER):
        value, place = server.flags[flags.TOOL_PARSER]
        why = f"the parser {value} does not know Kimi's form of calls"
        yield place.find("tools-missing", why, f"use {flags.TOOL_PARSER}={flags.KIMI_PARSER}")


def _length(server: DescribedServer, context: Context) -> Iterator[Finding]:
    given = server.flags.get(flags.MAX_MODEL_LEN)
    if given is None or context.release is None:
        return
    length, most = read_length(server), context.release.max_position_embeddings
    if length is not None and not 1 <= length <= most:
        why = f"--max-model-len {length} is not in 1..{most}, the lengths {context.release.name} was made for"
        yield given[1].find("max-model-len", why, f"use {most} or less")


def read_length(server: DescribedServer) -> int | None:
    """Return the server's --max-model-len; None if it is not given, not seen, or left to vLLM."""
    length = read_size(server.value(flags.MAX_MODEL_LEN) or "")
    return None if length == -1 else length


def _add_shm(server: DescribedServer) -> Any:
    """Return what adds a memory volume at /dev/shm; None where there is no pod to add it to."""
    container, volumes = server.container, server.volumes
    if container is None or volumes is None or server.templated:
        return None
    pod = Place(document=volumes.document, path=volumes.path[:-1]).value
    if container.document is not volumes.document:
        return None
    for node, key in ((pod, "volumes"), (container.value, "volumeMounts")):
        if not isinstance(node, dict) or not isinstance(node.get(key, []), list):
            return None
    size = max(8, 2 * server.gpus)

    def repair() -> None:
        volume = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size}Gi"}}
        pod.setdefault("volumes", []).append(volume)
        container.value.setdefault("volumeMounts", []).append({"name": "shm", "mountPath": "/dev/shm"})

    return repair
