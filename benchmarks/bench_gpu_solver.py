"""The solver of a layer of Kimi-K2's experts on one GPU, stage by stage, without a checkpoint.

    python benchmarks/bench_gpu_solver.py --out solver.json

Makes a batch of eight experts' gate and up, and one of their down, with Hessians of made-up tokens; holds
codes' errors to those of the same rules in float32 with plain torch; times every stage, the kernels alone,
and variants of their sizes. A layer has 48 such batches. Every part is written to --out as it ends; a part
that fails says so, and the others go on.
"""

import argparse
import json
import statistics
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu.rates import seconds
from gpu.solving import Problem, make_problem, reference_errors, true_errors

from moe4.gptq.gpu import columns, factor, scales, solver
from moe4.gptq.gpu.halves import permuted, split
from moe4.gptq.gpu.products import add_product_, multiply
from moe4.gptq.gpu.solver import BatchSolver, Precision
from moe4.recipe import Gptq

BATCHES = 48  # of a layer
GROUP = 128
SHAPES = {"gate and up": (7168, [2048, 2048]), "down": (2048, [7168])}


class Stages:
    """Seconds on the device by stage, from events."""

    def __init__(self) -> None:
        self._events: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._events[name].append((first, last))

    def seconds(self) -> dict[str, float]:
        torch.cuda.synchronize()
        return {name: sum(a.elapsed_time(b) for a, b in pairs) / 1000 for name, pairs in self._events.items()}


class Report:
    """What was found, part by part."""

    def __init__(self, out: Path | None) -> None:
        self.parts: dict[str, Any] = {}
        self._out, self._started = out, time.perf_counter()

    def add(self, name: str, function: Callable[[], Any]) -> None:
        try:
            found = function()
        except Exception as error:
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        torch.cuda.synchronize()
        self.parts[name] = found
        print(f"[{time.perf_counter() - self._started:5.1f} s] {name}: {json.dumps(found)}", flush=True)
        if self._out is not None:
            self._out.write_text(json.dumps(self.parts, indent=2))


@contextmanager
def changed(module: Any, **values: Any) -> Iterator[None]:
    """Set a module's constants for a while."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def stage_times(problem: Problem, precision: Precision = "float16", repeats: int = 3) -> dict[str, Any]:
    """Return seconds a layer: medians of a batch by stage, times the batches; by the wall's clock, too."""
    found, wall = defaultdict(list), []
    for number in range(repeats + 1):
        stages = Stages()
        batch = BatchSolver(settings=Gptq(), group_size=GROUP, precision=precision, stage=stages)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        started = time.perf_counter()
        batch.quantize(problem.W, problem.H, problem.part_rows)
        torch.cuda.synchronize()
        wall.append(time.perf_counter() - started)
        if number:
            for name, value in stages.seconds().items():
                found[name].append(value)
    layer = {name: round(BATCHES * statistics.median(values), 3) for name, values in found.items()}
    return {
        "layer": layer,
        "layer_sum": round(sum(layer.values()), 3),
        "layer_wall": round(BATCHES * statistics.median(wall[1:]), 3),
        "first_wall": round(wall[0], 2),
        "peak_gb_beside": round((torch.cuda.max_memory_allocated() - held) / 1e9, 2),
    }


def compile_seconds() -> float:
    """Return the seconds that compiling all kernels takes, unless they lie in Triton's cache."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    BatchSolver(settings=Gptq(), group_size=GROUP).warm_up(torch.device("cuda"))
    torch.cuda.synchronize()
    return round(time.perf_counter() - started, 2)


def check(problem: Problem) -> dict[str, Any]:
    """Errors of all rows, by exact products, of two precisions and of plain torch in float32."""
    expected = reference_errors(problem, GROUP)
    found: dict[str, Any] = {"torch float32": [round(value, 7) for value in expected]}
    codes = {}
    names: list[Precision] = ["float32", "float16"]
    for precision in names:
        batch = BatchSolver(settings=Gptq(), group_size=GROUP, precision=precision)
        results = batch.quantize(problem.W, problem.H, problem.part_rows)
        errors = true_errors(problem, results)
        ratios = [a / b for a, b in zip(errors, expected, strict=True)]
        codes[precision] = torch.stack([parts[0].codes for parts in results])
        found[precision] = {
            "error_over_torch": [
                round(min(ratios), 5),
                round(statistics.mean(ratios), 5),
                round(max(ratios), 5),
            ],
            "fallbacks": sum(part.fallback is not None for parts in results for part in parts),
            "raised": sum(part.raised_damping is not None for parts in results for part in parts),
            "recorded": round(statistics.mean(part.error for parts in results for part in parts), 7),
            "rtn": round(statistics.mean(part.rtn_error for parts in results for part in parts), 7),
        }
    found["same_codes"] = round(float((codes["float32"] == codes["float16"]).float().mean()), 5)
    again = BatchSolver(settings=Gptq(), group_size=GROUP).quantize(problem.W, problem.H, problem.part_rows)
    found["repeatable"] = bool((torch.stack([parts[0].codes for parts in again]) == codes["float16"]).all())
    return found


class Parts:
    """The solver's parts alone, on one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.batch = BatchSolver(settings=Gptq(), group_size=GROUP)
        self.factors = self.batch._factorize(problem.H)
        self.S, _ = self.batch._search(problem.W, self.factors)
        self.g = torch.ones(len(problem.W), device="cuda")
        batch, size, rows = problem.W.shape
        self.codes = torch.zeros(problem.W.shape, dtype=torch.int8, device="cuda")
        self.lost = torch.randn(batch, size, rows, device="cuda", dtype=torch.float16)
        self.left = torch.empty_like(self.lost)
        self.missed = torch.zeros(batch, 512, rows, device="cuda")
        self.G = torch.zeros_like(problem.W)
        self.H = torch.empty_like(problem.H, dtype=torch.float16)
        split(problem.H, self.factors.h, self.H, None, self.factors.added)

    def solve_block(self) -> float:
        here = slice(0, 128)
        return 1e6 * seconds(
            lambda: columns.solve_block(
                self.problem.W,
                self.S,
                self.factors.order[:, here],
                self.factors.R[:, here, here],
                self.missed[:, here],
                self.codes,
                self.lost[:, here],
                self.left[:, here],
                self.g,
                self.g,
            )
        )

    def descend_group(self) -> float:
        here = slice(0, 128)
        was, missed = self.G[:, 0].contiguous(), self.G[:, here].contiguous()
        s = self.S[:, 0].clone()
        return 1e6 * seconds(
            lambda: columns.descend_group(
                self.H[:, here, here],
                self.G[:, here],
                self.codes[:, here],
                s,
                self.lost[:, here],
                self.g,
                was,
                missed,
            )
        )

    def short_product(self, rows: int = 256) -> float:
        return 1e6 * seconds(
            lambda: add_product_(self.missed[:, :rows], self.H[:, :rows, :128], self.lost[:, :128])
        )

    def rate(self, run: Callable[[], Any], m: int, k: int, n: int) -> float:
        return round(2 * len(self.problem.W) * m * k * n / seconds(run, 5) / 1e12, 1)

    def measure(self) -> dict[str, Any]:
        batch, size, rows = self.problem.W.shape
        H, R, lost = self.H, self.factors.R, self.lost
        found: dict[str, Any] = {}

        def note(name: str, function: Callable[[], Any]) -> None:
            try:
                found[name] = function()
            except Exception as error:
                found[name] = f"failed: {str(error)[:200]}"

        note("solve_block_us", lambda: round(self.solve_block(), 1))
        note("descend_group_us", lambda: round(self.descend_group(), 1))
        note("short_product_256_us", lambda: round(self.short_product(), 1))
        note("multiply_tflops", lambda: self.rate(lambda: multiply(H[:, :512], lost), 512, size, rows))
        note(
            "add_product_tflops",
            lambda: self.rate(lambda: add_product_(self.G[:, :512], H[:, :512], lost), 512, size, rows),
        )
        note(
            "transposed_tflops",
            lambda: self.rate(lambda: multiply(R[:, :, :512].mT, lost), 512, size, rows),
        )
        low = torch.empty_like(H)
        added, h = self.factors.added, self.factors.h
        note(
            "split_H_ms", lambda: round(1e3 * seconds(lambda: split(self.problem.H, h, H, low, added), 5), 3)
        )
        order, diagonal = self.factors.order, added.gather(1, self.factors.order)
        note(
            "permuted_ms",
            lambda: round(1e3 * seconds(lambda: permuted(self.problem.H, order, diagonal, h), 5), 3),
        )
        tile = torch.eye(64, device="cuda").repeat(batch, 1, 1)
        fine = torch.ones(batch, dtype=torch.int8, device="cuda")
        note("factor_block_us", lambda: round(1e6 * seconds(lambda: factor.factor_block_(tile, fine)), 1))
        note(
            "factor_block_in_torch_us",
            lambda: round(1e6 * seconds(lambda: factor.factor_block_in_torch_(tile, fine)), 1),
        )
        places = order[:, :512].flatten()
        block = torch.zeros(batch * 512, rows, device="cuda")
        flat = self.G.view(-1, rows)
        note("index_copy_512_us", lambda: round(1e6 * seconds(lambda: flat.index_copy_(0, places, block)), 1))
        note(
            "search_ms",
            lambda: round(1e3 * seconds(lambda: self.batch._search(self.problem.W, self.factors), 5), 3),
        )
        return found

    def factor_ms(self, block: Any = None) -> float:
        block = factor.factor_block_ if block is None else block
        A = permuted(self.problem.H, self.factors.order, self.diagonal(), self.factors.c.square())
        B = A.clone()

        def run() -> None:
            B.copy_(A)
            factor.upper_factor_(B, torch.float16, block)

        return round(1e3 * (seconds(run, 3) - seconds(lambda: B.copy_(A), 3)), 2)

    def diagonal(self) -> torch.Tensor:
        damped = self.problem.H.diagonal(dim1=1, dim2=2) + self.factors.added
        return damped.gather(1, self.factors.order)


def attempt(function: Callable[[], Any]) -> Any:
    """Return what a variant gives, or how it failed."""
    try:
        return function()
    except Exception as error:
        torch.cuda.synchronize()
        return f"failed: {type(error).__name__} {str(error)[:160]}"


def kernel_variants(parts: Parts) -> dict[str, Any]:
    """Microseconds of the columns' kernels, milliseconds of scales, by rows a program and warps."""
    found: dict[str, Any] = {}
    for rows, warps in ((32, 1), (32, 2), (64, 2), (128, 4), (16, 1)):
        with changed(columns, ROWS=rows, WARPS=warps):
            found[f"columns {rows}/{warps}: solve, descend us"] = [
                attempt(lambda: round(parts.solve_block(), 1)),
                attempt(lambda: round(parts.descend_group(), 1)),
            ]
    for rows, warps in ((32, 4), (64, 8), (16, 4), (32, 8), (64, 4)):
        with changed(columns, REFIT_ROWS=rows, REFIT_WARPS=warps):
            found[f"refit {rows}/{warps}: with descend us"] = attempt(lambda: round(parts.descend_group(), 1))
    for rows, warps in ((32, 4), (32, 2), (64, 4)):
        with changed(scales, ROWS=rows, WARPS=warps):
            search = lambda: parts.batch._search(parts.problem.W, parts.factors)  # noqa: E731
            found[f"scales {rows}/{warps} ms"] = attempt(lambda run=search: round(1e3 * seconds(run, 3), 3))
    return found


def factor_variants(parts: Parts) -> dict[str, Any]:
    """Milliseconds of a batch's factors."""
    found: dict[str, Any] = {"as it is": attempt(parts.factor_ms)}
    found["blocks in torch, of 64"] = attempt(lambda: parts.factor_ms(factor.factor_block_in_torch_))
    for block in (32, 128):
        with changed(factor, BLOCK_COLUMNS=block):
            found[f"blocks of {block}"] = attempt(parts.factor_ms)
            if block == 128:
                in_torch = lambda: parts.factor_ms(factor.factor_block_in_torch_)  # noqa: E731
                found["blocks in torch, of 128"] = attempt(in_torch)
    for warps in (1, 2, 8):
        with changed(factor, WARPS=warps):
            found[f"{warps} warps"] = attempt(parts.factor_ms)
    for panel in (256, 1024):
        with changed(factor, PANEL_COLUMNS=panel):
            found[f"panels of {panel}"] = attempt(parts.factor_ms)
    for columns_at_once in (1024, 8192):
        with changed(factor, SUM_COLUMNS=columns_at_once):
            found[f"sums of {columns_at_once}"] = attempt(parts.factor_ms)
    return found


def outer_variants(problem: Problem) -> dict[str, Any]:
    """Seconds a layer of solve and descent by OUTER_COLUMNS."""
    found: dict[str, Any] = {}
    for outer in (256, 512, 1024):
        with changed(solver, OUTER_COLUMNS=outer):
            layer = attempt(lambda: stage_times(problem, repeats=2)["layer"])
            found[str(outer)] = (
                {name: layer[name] for name in ("solve", "descent")} if isinstance(layer, dict) else layer
            )
    return found


def two_threads(problem: Problem) -> dict[str, float]:
    """Seconds of four batches one after another, and in two threads with a stream each."""

    def work(count: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(count):
                batch = BatchSolver(settings=Gptq(), group_size=GROUP)
                batch.quantize(problem.W, problem.H, problem.part_rows)
            torch.cuda.current_stream().synchronize()

    def timed(counts: list[int]) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        threads = [threading.Thread(target=work, args=(count,)) for count in counts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return round(time.perf_counter() - started, 3)

    timed([1, 1])
    return {"one": timed([4]), "two": timed([2, 2])}


def profile(problem: Problem) -> list[str]:
    """Name the kernels that take longest: milliseconds of a batch, launches."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as found:
        BatchSolver(settings=Gptq(), group_size=GROUP).quantize(problem.W, problem.H, problem.part_rows)
        torch.cuda.synchronize()
    rows = [e for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    rows.sort(key=lambda e: -e.self_device_time_total)
    return [f"{e.self_device_time_total / 1000:8.2f} ms {e.count:5d} x {e.key[:70]}" for e in rows[:22]]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="no variants")
    args = parser.parse_args()
    report = Report(args.out)
    problems: dict[str, Problem] = {}
    for seed, (name, (size, part_rows)) in enumerate(SHAPES.items()):
        problems[name] = make_problem(size, part_rows, seed)
    with torch.inference_mode():
        report.add("compile", compile_seconds)
        for name, problem in problems.items():
            report.add(f"stages, {name}", lambda p=problem: stage_times(p))
            report.add(f"profile, {name}", lambda p=problem: profile(p))
        for name, problem in problems.items():
            report.add(f"errors, {name}", lambda p=problem: check(p))
        first = problems["gate and up"]
        parts: list[Parts] = []
        report.add("prepared", lambda: parts.append(Parts(first)))
        report.add("parts", lambda: parts[0].measure())
        if not args.quick:
            report.add("two threads", lambda: two_threads(first))
            report.add("factor", lambda: factor_variants(parts[0]))
            report.add("kernels", lambda: kernel_variants(parts[0]))
            parts.clear()
            report.add("outer columns", lambda: outer_variants(first))
    for name, found in report.parts.items():
        if name.startswith("profile") and isinstance(found, list):
            print(f"\n{name}", *found, sep="\n")
    totals: dict[str, float] = defaultdict(float)
    for name in SHAPES:
        for stage, value in report.parts[f"stages, {name}"].get("layer", {}).items():
            totals[stage] += value
    print(
        "\nseconds a layer:",
        json.dumps({k: round(v, 2) for k, v in totals.items()}),
        f"sum {sum(totals.values()):.2f}",
    )


if __name__ == "__main__":
    main()
