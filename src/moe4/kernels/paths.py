"""The kernel paths that this machine can run, and the one that is taken. Without torch."""

from moe4.environment import Variable, chosen
from moe4.errors import KernelError
from moe4.kernels import _experts

PATHS: tuple[str, ...] = tuple(_experts.path_names())
# Never taken unless they are named, and why.
ON_REQUEST = {"avx512_vnni": "activations are rounded to int8"}


def available_paths() -> tuple[str, ...]:
    """Return the kernel paths this machine can run, fastest first, then those that run on request only."""
    return PATHS


def selected_path() -> str:
    """Return the path `fused_experts` takes: the one MOE4_KERNEL names, else the fastest available.

    Paths in ON_REQUEST must be named.
    """
    return chosen(Variable.KERNEL, PATHS, next(path for path in PATHS if path not in ON_REQUEST))


def path_index(name: str | None) -> int:
    """Return a path's number, the selected one's for None. Raises KernelError if this machine lacks it."""
    if name is None:
        name = selected_path()
    if name not in PATHS:
        raise KernelError(f"path: expected one of {', '.join(PATHS)} on this machine, found {name!r}")
    return PATHS.index(name)
