"""Where a run's tensors lie when it computes on a GPU: the device, pinned memory on the host, or a file."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from moe4.calibration.activations import Activations, ActivationStore, ResidentActivations
from moe4.errors import RecipeError

RESERVED_BYTES = (
    20 << 30
)  # of a GPU, for what is not activations: a batch of the largest experts being solved


def make_activations(
    path: Path, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Activations:
    """Return room for activations [rows, columns]: on a GPU that has enough of it, else in a file at `path`.

    On a CPU always in a file, of which the page cache keeps what it has room for.
    """
    if has_room(shape[0] * shape[1] * dtype.itemsize, device):
        return ResidentActivations(torch.empty(shape, dtype=dtype, device=device))
    return ActivationStore(path, shape, dtype, create=True)


def has_room(num_bytes: int, device: torch.device) -> bool:
    """Say whether activations of that size can lie on the device for the length of a layer."""
    return num_bytes + RESERVED_BYTES <= free_bytes(device)


def free_bytes(device: torch.device) -> int:
    """Return how much of a GPU's memory can be had; 0 for a CPU, where activations lie in files."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def require_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of that name; `cuda` without a number is the GPU of this rank.

    Raises RecipeError if it cannot be used, or is a GPU and there is no Triton.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        if device.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise RecipeError(f"device {name} needs Triton, which is not installed: pip install triton")
        torch.zeros(1, device=device, dtype=torch.float32)
        use_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise RecipeError(f"device {name} cannot be used: {reason}") from None
    return device


def use_device(device: torch.device) -> None:
    """Make a GPU the current one of the calling thread: a new thread begins with GPU 0."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device, by way of pinned memory; the copy may not have ended."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Return a tensor in the host's memory; from a GPU it comes when its stream is waited for."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
