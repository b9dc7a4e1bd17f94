"""Over the common machines: what works, the smallest that does, the one to recommend."""

from collections.abc import Iterator
from dataclasses import dataclass

from moe4.deploy.machines import CPU_SERVERS, DEVICES, Device
from moe4.deploy.release import Release
from moe4.deploy.sizing import Fit, Layout, check_layout, fit
from moe4.errors import DeployError

MAX_NODES = 8
RANK = {"no": 0, "marginal": 1, "fits": 2, "comfortable": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Fits on every machine of the table: `fits` the row shown of each, and the two picked from them."""

    fits: list[Fit]
    smallest: Fit | None
    recommended: Fit | None


def default_layout(release: Release, device: Device, num_gpus: int) -> Layout:
    """Return how this many GPUs are best used: tensor parallel within a machine, pipeline between machines.

    Raises DeployError if no split of exactly that many works.
    """
    if num_gpus < 1:
        raise DeployError(f"--gpus {num_gpus} is not at least 1")
    reasons = []
    for tensor in range(min(num_gpus, device.per_node), 0, -1):
        if num_gpus % tensor or (num_gpus > device.per_node and device.per_node % tensor):
            continue
        layout = Layout(tensor=tensor, pipeline=num_gpus // tensor)
        refusal = check_layout(release, layout)
        if refusal is None:
            return layout
        reasons.append(refusal)
    raise DeployError(f"{num_gpus} GPUs cannot share {release.name}: {reasons[0] if reasons else 'no split'}")


def layouts(release: Release, device: Device) -> Iterator[Layout]:
    """Yield the usual layouts by falling simplicity: part of a machine, a machine, several."""
    if device.kind == "cpu":
        yield Layout()
        return
    for tensor in (1, 2, 4, 8):
        layout = Layout(tensor=tensor)
        if tensor <= device.per_node and check_layout(release, layout) is None:
            yield layout
            largest = tensor
    for nodes in range(2, MAX_NODES + 1):
        layout = Layout(tensor=largest, pipeline=nodes * device.per_node // largest)
        if check_layout(release, layout) is None:
            yield layout


def survey(release: Release, *, max_model_len: int | None, concurrency: int) -> Survey:
    """Try the release on every machine of the table, in seconds."""
    shown = []
    for device in (*DEVICES.values(), *CPU_SERVERS):
        candidates = [
            fit(release, device, layout, max_model_len=max_model_len, concurrency=concurrency)
            for layout in layouts(release, device)
        ]
        one_node = [item for item in candidates if item.num_nodes == 1]
        shown.append(one_node[-1])
        best = smallest_of(candidates)
        if best is not None and best.layout != one_node[-1].layout:
            shown.append(best)
    # vLLM's INT4 expert kernels are Marlin's, for NVIDIA; other kinds are shown, not recommended.
    works = [item for item in shown if item.works and item.device.kind == "nvidia"]
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


def smallest_on(release: Release, device: Device, max_model_len: int | None, concurrency: int) -> Fit:
    """Return the smallest deployment on this device that works. Raises DeployError if none does."""
    tried = [
        fit(release, device, layout, max_model_len=max_model_len, concurrency=concurrency)
        for layout in layouts(release, device)
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
