"""The device that a forward pass runs on, by the name a user gives."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moe4.errors import RecipeError

DEVICE_TYPES = ("cpu", "cuda")


def usable_device(name: str) -> torch.device:
    """Return the device, on which a tensor could be made. Raises RecipeError."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICE_TYPES:
        raise RecipeError(f"device {name!r} is unknown; expected cpu, cuda or cuda:N")
    try:
        torch.zeros(1, device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"device {name} cannot be used: {reason}") from None
    return device


class _ExactFloat32:
    """Turns TF32 off while any thread is inside: PyTorch's switches are the process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._before: list[str] = []
        self._switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._before = [switch.fp32_precision for switch in self._switches]
                self._set(["ieee"] * len(self._switches))
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._set(self._before)

    def _set(self, precisions: list[str]) -> None:
        for switch, precision in zip(self._switches, precisions, strict=True):
            switch.fp32_precision = precision


_EXACT_FLOAT32 = _ExactFloat32()


@contextmanager
def forward_mode() -> Iterator[None]:
    """Run a model's own code: without gradients, and in float32 where it says float32.

    On GPUs PyTorch computes float32 convolutions in TF32, with 11 bits, unless it is told not to.
    """
    with _EXACT_FLOAT32, torch.inference_mode():
        yield
