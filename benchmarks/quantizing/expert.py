"""One expert of Kimi-K2's size: seconds by the code of a run, by step, and the limit of its operations."""

import sys
import time
from collections.abc import Callable
from typing import Any

import make_k2_shaped
import torch

from moe4.config import parse_config
from moe4.gptq.columns import selected_path
from moe4.gptq.descent import descend
from moe4.gptq.factor import times_factor
from moe4.gptq.grid import search_scales
from moe4.gptq.hessian import Hessian
from moe4.gptq.products import product_dtype
from moe4.gptq.solver import AUDITED_ROWS, Audit, factorize, solve
from moe4.model.architecture import Network
from moe4.quantize.forecast.timing import probe
from moe4.recipe import Calibration, Recipe

GROUP_SIZE = 128

Rates = dict[torch.dtype, float]


def say(text: str) -> None:
    print(f"bench_quantize: {text}", file=sys.stderr, flush=True)


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return the least seconds of some calls, and what the last returned."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - started)
    return best, result


def gemm_rate(dtype: torch.dtype, size: int = 4096) -> float:
    """Return operations a second of the machine's matrix product, the best of five."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.mm(a, b)
    return 2 * size**3 / timed(lambda: torch.mm(a, b), 5)[0]


def count_operations(hidden: int, width: int, tokens: int, recipe: Recipe) -> dict[str, float]:
    """Return what one expert must take, multiplications and additions, by the precision they are done in.

    float32: factors, and the weighted errors of the audited rows of the weights, of round to nearest and of
    the result (half each). bfloat16, or float32 where MOE4_PRODUCTS or the machine says so: Hessians (half,
    they are symmetric), solve, its gradient, and descent, whose first sweep takes half; the tokens through
    the quantized expert, and the pool's 1,024 through gate and up.
    """
    sweeps = recipe.gptq.descent_sweeps
    products, float32 = 0.0, 0.0
    for columns, parts, rows, rows_of_x in (
        (hidden, 2, width, tokens),
        (width, 1, hidden, tokens + 1024),
    ):
        float32 += columns**3 / 3 + 3 * parts * min(rows, AUDITED_ROWS) * columns**2
        products += rows_of_x * columns**2 + parts * rows * columns**2 * (2 * sweeps + 1)
    forward = 2.0 * hidden * width * (3 * tokens + 2 * 1024)
    if product_dtype(torch.empty(0)) == torch.bfloat16:
        return {"float32": float32, "bfloat16": products + forward}
    return {"float32": float32 + products, "bfloat16": forward}


def time_stages(hidden: int, rows: int, tokens: int, recipe: Recipe, rates: Rates) -> dict[str, Any]:
    """Time the steps of gate and up's solve alone, each as a share of the matrix product's rate.

    The product's, in the dtype that the step multiplies in.
    """
    rate, fast = rates[torch.float32], rates[product_dtype(torch.empty(0))]
    generator = torch.Generator().manual_seed(0)
    gains = torch.exp(torch.randn(hidden, generator=generator))
    x = (torch.randn(tokens, hidden, generator=generator) * gains).bfloat16()
    W = torch.randn(rows, hidden, generator=generator) / hidden**0.5
    settings, stages = recipe.gptq, {}

    def stage(name: str, operations: float, function: Callable[[], Any], rate: float = fast) -> Any:
        seconds, result = timed(function)
        share = operations / seconds / rate if operations else None
        stages[name] = {"seconds": round(seconds, 3), "share_of_gemm_rate": share and round(share, 3)}
        say(f"{name}: {seconds:.2f} s" + (f", {share:.0%} of the product's rate" if share else ""))
        return result

    def accumulate() -> Hessian:
        hessian = Hessian(hidden)
        hessian.add(x)
        return hessian

    H = stage("Hessian", tokens * hidden**2, accumulate).mean()
    factor = stage("factor", hidden**3 / 3, lambda: factorize(H, settings), rate)
    scales = stage(
        "scales",
        0,
        lambda: search_scales(
            W,
            factor.importance(),
            GROUP_SIZE,
            signed=settings.signed_scales,
            candidates=settings.scale_candidates,
            shrink=settings.scale_shrink,
        ),
    )
    left = W.new_empty(W.shape[::-1], dtype=product_dtype(W))
    codes = stage("solve", rows * hidden**2, lambda: solve(W, scales, factor.R, factor.order, left))
    if settings.descent_sweeps:
        gradient = stage("gradient", rows * hidden**2, lambda: times_factor(factor.R, left, factor.order))
        operations = (2 * settings.descent_sweeps - 1) * rows * hidden**2
        sweeps, added = settings.descent_sweeps, factor.added()
        stage("descent", operations, lambda: descend(W, codes, scales, H, added, sweeps, gradient))
    audit = stage("audit of the weights", AUDITED_ROWS * hidden**2, lambda: Audit(W, H), rate)
    stage("audit of a result", AUDITED_ROWS * hidden**2, lambda: audit.error(codes, scales), rate)
    return stages


def bench_expert(hidden: int, width: int, tokens: int) -> dict[str, Any]:
    """Time one expert by the code of a run, beside the limit."""
    recipe = Recipe(group_size=GROUP_SIZE, calibration=Calibration(max_sequence_tokens=min(1024, tokens)))
    rates = {dtype: gemm_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    float32, bfloat16 = rates.values()
    sizes = {"layers": 1, "dense": 0, "experts": 2, "top_k": 2, "hidden": hidden, "width": width}
    network = Network(parse_config(make_k2_shaped.shaped_config(**sizes)), torch.bfloat16)
    found = probe(network, recipe, tokens)
    operations = count_operations(hidden, width, tokens, recipe)
    limit = operations["float32"] / float32 + operations["bfloat16"] / bfloat16
    say(f"one expert: {found.expert_seconds:.1f} s, the limit {limit:.1f} s")
    return {
        "hidden": hidden,
        "width": width,
        "tokens": tokens,
        "path": selected_path(torch.empty(0)),
        "products": str(product_dtype(torch.empty(0))).removeprefix("torch."),
        "gemm_gflops": {"float32": round(float32 / 1e9, 1), "bfloat16": round(bfloat16 / 1e9, 1)},
        "operations": operations,
        "limit_seconds": round(limit, 2),
        "expert_seconds": round(found.expert_seconds, 2),
        "gate_up_stages": time_stages(hidden, 2 * width, tokens, recipe, rates),
    }
