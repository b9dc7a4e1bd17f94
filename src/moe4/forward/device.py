"""The device that a forward pass runs on, by the name a user gives."""

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
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"device {name} cannot be used: {reason}") from None
    return device
