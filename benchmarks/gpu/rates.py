"""What the hardware allows: rates of large matrix products and copies."""

import statistics
from collections.abc import Callable

import torch


def seconds(function: Callable[[], object], repeats: int = 10) -> float:
    """Return the median seconds of a call, by events on the device, after three to warm up."""
    for _ in range(3):
        function()
    found = []
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        function()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) / 1000)
    return statistics.median(found)


def measure_rates(size: int = 8192) -> dict[str, float]:
    """Return operations and bytes a second."""
    operations = 2 * size**3
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    found = {"float32": operations / seconds(lambda: a @ b, 5)}
    torch.backends.cuda.matmul.allow_tf32 = True
    found["tf32"] = operations / seconds(lambda: a @ b)
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = a.bfloat16(), b.bfloat16()
    found["bf16"] = operations / seconds(lambda: a @ b)
    found["bf16_float32_out"] = operations / seconds(lambda: torch.mm(a, b, out_dtype=torch.float32))
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    found["device_copy_read_and_written"] = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    view = target[: host.nbytes]
    found["host_to_device"] = host.nbytes / seconds(lambda: view.copy_(host, non_blocking=True), 5)
    found["device_to_host"] = host.nbytes / seconds(lambda: host.copy_(view, non_blocking=True), 5)
    return {name: round(value / 1e9, 1) for name, value in found.items()} | {"unit": "1e9 a second"}  # type: ignore[dict-item]
