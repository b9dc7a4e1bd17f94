"""What the loader says of the experts it mapped, and the speed to expect where they exceed memory."""

from collections.abc import Sequence

from vllm.logger import init_logger

from moe4.units import format_bytes
from moe4.vllm_plugin.loader.layer import MappedLayer

logger = init_logger("vllm.plugins.moe4")


def say_what_was_mapped(layers: Sequence[MappedLayer], seconds: float) -> None:
    """Log how many experts there are, and what of them had to be copied and why."""
    copied: dict[str, int] = {}
    for layer in layers:
        for why, num_bytes in layer.copied.items():
            copied[why] = copied.get(why, 0) + num_bytes
    logger.info(
        "moe4: mapped %d experts of %d layers, %s, in %.2f seconds; copied %s",
        sum(len(layer.stored) for layer in layers),
        len(layers),
        format_bytes(sum(layer.num_bytes for layer in layers)),
        seconds,
        format_bytes(sum(copied.values())),
    )
    for why, num_bytes in copied.items():
        logger.warning("moe4: %s of the experts had to be copied: %s", format_bytes(num_bytes), why)


def warn_of_speed(
    layers: Sequence[MappedLayer],
    experts_per_token: Sequence[float],
    kept_bytes: int,
    disk_rate: float | None,
    *,
    cached: bool,
) -> None:
    """Warn that experts come from the disk, and how long that takes.

    experts_per_token: of each layer, on this rank. kept_bytes: memory for experts. disk_rate: bytes a second.
    cached: whether an expert cache keeps them, rather than the system.
    """
    total = sum(layer.num_bytes for layer in layers)
    token = sum(
        layer.num_bytes / len(layer.stored) * share
        for layer, share in zip(layers, experts_per_token, strict=True)
    )
    missed = token * (1 - min(1.0, kept_bytes / total))
    speed = "its speed could not be measured"
    if disk_rate:
        seconds = missed / disk_rate
        speed = f"it gave {format_bytes(disk_rate)}/s just now: expect about {seconds:.2g} seconds a token"
    logger.warning(
        "moe4: the experts take %s and there is memory for %s of them, %s: of the %s that a token needs, "
        "some %s come from the disk; %s",
        format_bytes(total),
        format_bytes(kept_bytes),
        "in a cache of the most used" if cached else "which the system manages",
        format_bytes(token),
        format_bytes(missed),
        speed,
    )
