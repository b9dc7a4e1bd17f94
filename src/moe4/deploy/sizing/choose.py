"""Over the common machines: what works, the smallest that does, the one to recommend."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moe4.arguments import argument
from moe4.deploy.sizing.fit import Fit, Layout, check_groups, check_layout, fit
from moe4.deploy.sizing.machines import CPU_SERVERS, DEVICES, Device, asked_gpu, cpu_server
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.errors import DeployError

MAX_NODES = 8
RANK = {"no": 0, "marginal": 1, "fits": 2, "comfortable": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Fits on every machine of the table: `fits` the row shown of each, and the two picked from them."""

    fits: list[Fit]
    smallest: Fit | None
    recommended: Fit | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a deployment was asked to run on; None leaves the choice to us. Memory in GiB.

    plugin: vLLM has moe4's plugin there.
    """

    on_cpu: bool = False
    gpu: str | None = None
    gpu_memory: float | None = None
    gpus: int | None = None
    memory: float | None = None
    data_parallel: int | None = None
    expert_parallel: bool = False
    max_model_len: int | None = None
    concurrency: int = 1
    plugin: bool = False


def pick(release: ReleaseSize, wanted: Wanted) -> Fit:
    """Return the fit on what was asked for, on the smallest that works, or on the recommended machine.

    Raises DeployError where the options contradict each other or nothing works.
    """
    names_gpu = wanted.gpu is not None or wanted.gpu_memory is not None
    if wanted.on_cpu:
        if names_gpu or wanted.gpus is not None:
            raise DeployError(f"{argument('engine', 'cpu')} takes {argument('memory')}, no GPUs")
        if wanted.memory is None:
            raise DeployError(
                f"{argument('engine', 'cpu')} needs {argument('memory')}, the GiB of the server"
            )
        return _fit(release, cpu_server(wanted.memory), Layout(), wanted)
    if wanted.memory is not None:
        raise DeployError(
            f"{argument('memory')} goes with {argument('engine', 'cpu')}; a GPU's is {argument('gpu_memory')}"
        )
    splits_experts = wanted.data_parallel is not None or wanted.expert_parallel
    if not names_gpu:
        if wanted.gpus is not None or splits_experts:
            raise DeployError(
                f"{argument('gpus')} and the parallel sizes need {argument('gpu')} or "
                f"{argument('gpu_memory')}"
            )
        table = survey(
            release,
            max_model_len=wanted.max_model_len,
            concurrency=wanted.concurrency,
            plugin=wanted.plugin,
        )
        if table.recommended is None:
            wrong = None if wanted.plugin else check_groups(release, Layout())
            if wrong:
                raise DeployError(f"{release.name}: {wrong}")
            raise DeployError(f"{release.name} does not fit on any machine in the table; see moe4 fit")
        return table.recommended
    device = asked_gpu(wanted.gpu, wanted.gpu_memory)
    if splits_experts:
        copies = 1 if wanted.data_parallel is None else wanted.data_parallel
        num_gpus = copies if wanted.gpus is None else wanted.gpus
        if min(copies, num_gpus) < 1:
            raise DeployError(
                f"{argument('data_parallel', copies)} and {argument('gpus', num_gpus)} must be at least 1"
            )
        if num_gpus % copies:
            raise DeployError(
                f"{argument('gpus', num_gpus)} is not a multiple of {argument('data_parallel', copies)}"
            )
        layout = Layout(tensor=num_gpus // copies, data=copies, expert_parallel=True)
        return _fit(release, device, layout, wanted)
    if wanted.gpus is not None:
        layout = default_layout(release, device, wanted.gpus, plugin=wanted.plugin)
        return _fit(release, device, layout, wanted)
    return smallest_on(release, device, wanted.max_model_len, wanted.concurrency, plugin=wanted.plugin)


def _fit(release: ReleaseSize, device: Device, layout: Layout, wanted: Wanted) -> Fit:
    return fit(
        release,
        device,
        layout,
        max_model_len=wanted.max_model_len,
        concurrency=wanted.concurrency,
        plugin=wanted.plugin,
    )


def default_layout(release: ReleaseSize, device: Device, num_gpus: int, *, plugin: bool = False) -> Layout:
    """Return how this many GPUs are best used: tensor parallel within a machine, pipeline between machines.

    Raises DeployError if no split of exactly that many works.
    """
    if num_gpus < 1:
        raise DeployError(f"{argument('gpus', num_gpus)} is not at least 1")
    reasons = []
    for tensor in range(min(num_gpus, device.per_node), 0, -1):
        if num_gpus % tensor or (num_gpus > device.per_node and device.per_node % tensor):
            continue
        layout = Layout(tensor=tensor, pipeline=num_gpus // tensor)
        refusal = check_layout(release, layout, device, plugin=plugin)
        if refusal is None:
            return layout
        reasons.append(refusal)
    raise DeployError(f"{num_gpus} GPUs cannot share {release.name}: {reasons[0] if reasons else 'no split'}")


def layouts(release: ReleaseSize, device: Device, *, plugin: bool = False) -> Iterator[Layout]:
    """Yield the usual layouts by falling simplicity: part of a machine, a machine, several.

    The first is one GPU, whether or not it works, so that its reason can be told.
    """
    yield Layout()
    if device.kind == "cpu":
        return
    largest = 1
    for tensor in (2, 4, 8):
        layout = Layout(tensor=tensor)
        if tensor <= device.per_node and check_layout(release, layout, device, plugin=plugin) is None:
            yield layout
            largest = tensor
    if device.is_here:  # there is one such machine
        return
    for nodes in range(2, MAX_NODES + 1):
        layout = Layout(tensor=largest, pipeline=nodes * device.per_node // largest)
        if check_layout(release, layout, device, plugin=plugin) is None:
            yield layout


def survey(
    release: ReleaseSize,
    *,
    max_model_len: int | None,
    concurrency: int,
    plugin: bool = False,
    here: Sequence[Device] = (),
) -> Survey:
    """Try the release on every machine of the table, in seconds, and on the devices of this one, `here`.

    Those of this machine are shown; the smallest and the recommended are the table's.
    """
    shown = []
    for device in (*here, *DEVICES.values(), *CPU_SERVERS):
        candidates = [
            fit(
                release,
                device,
                layout,
                max_model_len=max_model_len,
                concurrency=concurrency,
                plugin=plugin,
            )
            for layout in layouts(release, device, plugin=plugin)
        ]
        one_node = [item for item in candidates if item.num_nodes == 1]
        shown.append(one_node[-1])
        best = smallest_of(candidates)
        if best is not None and best.layout != one_node[-1].layout:
            shown.append(best)
    # vLLM's INT4 expert kernels are Marlin's, for NVIDIA; other kinds are shown, not recommended.
    works = [
        item for item in shown if item.works and item.device.kind == "nvidia" and not item.device.is_here
    ]
    comfortable = [item for item in works if item.verdict == "comfortable"]
    return Survey(
        fits=shown,
        smallest=min(works, key=_cost, default=None),
        recommended=min(comfortable or works, key=_cost, default=None),
    )


def smallest_of(fits: list[Fit]) -> Fit | None:
    """Return the fit with the fewest GPUs that works, or else the best of them."""
    working = [item for item in fits if item.works]
    if working:
        return min(working, key=lambda item: (item.layout.num_gpus, -item.cache_tokens))
    return max(fits, key=lambda item: (RANK[item.verdict], item.cache_tokens, item.free_bytes), default=None)


def smallest_on(
    release: ReleaseSize,
    device: Device,
    max_model_len: int | None,
    concurrency: int,
    *,
    plugin: bool = False,
) -> Fit:
    """Return the smallest deployment on this device that works. Raises DeployError if none does."""
    tried = [
        fit(release, device, layout, max_model_len=max_model_len, concurrency=concurrency, plugin=plugin)
        for layout in layouts(release, device, plugin=plugin)
    ]
    best = smallest_of(tried)
    assert best is not None
    if not best.works:
        raise DeployError(
            f"{release.name} does not fit on {best.layout.num_gpus} x {device.name} "
            f"({best.layout.describe()}): {best.reason}"
        )
    return best


def _cost(item: Fit) -> tuple[int, int]:
    """Order by machines, then by all the memory they have: a stand-in for the price."""
    return item.num_nodes, item.layout.num_gpus * item.device.memory_bytes
