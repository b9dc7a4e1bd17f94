"""Which processors vLLM's threads take on a CPU: a pure function of the machine and of what the user has set.

By itself vLLM 0.32 binds a thread to each core of one NUMA node but leaves one core to its scheduler: half of
a machine of two. The scheduler and the API take little, and with moe4's plugin they wait without polling. A
step that takes S of one core takes S/n on n and S/(n-1) on one fewer; what else the server does, I a step,
costs at most I on n. So leaving one out pays where n (n-1) > S/I. On two cores S/I was 26 at batch 1 and 33
at batch 8 with 4 layers of Kimi-K2's widths (benchmarks/bench_binding.py), which makes 6 cores; a whole model
has 15 times the layers and the same I, which makes 20. The limit lies between. On more than two cores it was
not measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from moe4.errors import ServeError
from moe4.machine.processors import Processors

MOST_CORES = 8
BIND = "VLLM_CPU_OMP_THREADS_BIND"
# The plugin's: give a processor up while other programs keep it busy (moe4.vllm_plugin.cpu.threads).
YIELD = "MOE4_YIELD_PROCESSORS"
# Whoever sets one of these has decided; vLLM's own rule is then left to work.
USERS = (
    BIND,
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_CPU_SIM_MULTI_NUMA",
    "CPU_VISIBLE_MEMORY_NODES",
    "OMP_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """The variables to set, the threads each rank computes with (None where vLLM decides), and why."""

    variables: dict[str, str] = field(default_factory=dict)
    num_threads: int | None = None
    reason: str


def choose_binding(processors: Processors, ranks: int, environment: Mapping[str, str]) -> Binding:
    """Return how `ranks` processes of vLLM share the processors.

    Raises ServeError if there are fewer processors than ranks.
    """
    # Of the threads that share a core one is enough; vLLM takes the last, too.
    cores = [core[-1] for core in processors.cores]
    given = [name for name in USERS if name in environment]
    if ranks > 1:
        return _split(processors, ranks, BIND in given)
    if given:
        return Binding(reason=f"{given[0]} is set")
    quota = processors.quota
    if quota is not None and quota < len(cores):
        threads = max(1, math.floor(quota))
        # Bound, all containers of a host would take its first processors; the system places these threads.
        return Binding(
            variables={BIND: "nobind", "OMP_NUM_THREADS": str(threads)},
            num_threads=threads,
            reason=f"the control group allows {quota:g} processors of {processors.num_logical}",
        )
    if processors.num_nodes > 1:
        return Binding(reason=f"{processors.num_nodes} NUMA nodes: vLLM takes the first, less one core")
    if len(cores) > MOST_CORES:
        return Binding(reason=f"{len(cores)} cores: vLLM leaves one to its scheduler")
    variables = {BIND: ",".join(map(str, cores))}
    if len(cores) > 1:
        variables[YIELD] = "1"
    return Binding(
        variables=variables,
        num_threads=len(cores),
        reason=f"{len(cores)} cores of at most {MOST_CORES}: the scheduler needs no core of its own",
    )


def _split(processors: Processors, ranks: int, given: bool) -> Binding:
    """Return equal runs of cores for several ranks; of logical processors where there are fewer cores."""
    if given:
        return Binding(reason=f"{BIND} is set")
    found = [core[-1] for core in processors.cores]
    if len(found) < ranks:
        found = [processor for core in processors.cores for processor in core]
    share = len(found) // ranks
    if share == 0:
        raise ServeError(f"{ranks} ranks need {ranks} processors, found {len(found)}")
    if processors.quota is not None:
        share = max(1, min(share, math.floor(processors.quota) // ranks))
    runs = [found[rank * share : (rank + 1) * share] for rank in range(ranks)]
    return Binding(
        variables={BIND: "|".join(",".join(map(str, run)) for run in runs)},
        num_threads=share,
        reason=f"{ranks} ranks, equal shares of the processors",
    )
