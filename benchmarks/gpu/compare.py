"""The layer's parts beside other ways to do them."""

import time
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.gptq.gpu.kernels import MAX_COLUMNS, solve_block
from moe4.gptq.gpu.products import Precision, gram, product
from moe4.gptq.gpu.solver import BatchSolver, weighted_square
from moe4.gptq.solver import factorize, quantize_gptq

from .layer import Layer, Stages
from .rates import seconds

BATCH = 8


def compare_hessians(layer: Layer) -> dict[str, Any]:
    """Relative error against float64, and rate, of the Hessian of one expert's tokens by precision."""
    x = layer.tokens(0)
    exact = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device="cuda")
    for piece in x.split(4096):
        exact.addmm_(piece.double().T, piece.double())
    operations = 2.0 * x.shape[0] * x.shape[1] ** 2
    y = x.float()
    ways = {"bf16": lambda: gram(x), "bf16x3 of float32": lambda: gram(y), "float32": lambda: y.T @ y}
    found: dict[str, Any] = {"tokens": len(x)}

    def note(name: str, function: Any) -> None:
        error = float((function().double() - exact).norm() / exact.norm())
        found[name] = {"error": error, "tflops": round(operations / seconds(function, 5) / 1e12, 1)}

    for name, function in ways.items():
        note(name, function)
    torch.backends.cuda.matmul.allow_tf32 = True
    note("tf32", ways["float32"])
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def compare_precisions(layer: Layer) -> dict[str, Any]:
    """Gate and up of a batch by the precision of products: seconds by stage, errors by the exactest."""
    W, H = layer.gate_up(BATCH)
    rows = W.shape[2]
    found: dict[str, Any] = {}
    codes: dict[str, list[Tensor]] = {}
    names: list[Precision] = ["float32", "tf32", "bf16x3"]
    for precision in names:
        solver = BatchSolver(settings=layer.recipe.gptq, group_size=128, precision=precision)
        solver.quantize(W, H, [rows])
        stages = Stages()
        solver = BatchSolver(settings=layer.recipe.gptq, group_size=128, precision=precision, stage=stages)
        started = time.perf_counter()
        results = [parts[0] for parts in solver.quantize(W, H, [rows])]
        torch.cuda.synchronize()
        whole = time.perf_counter() - started
        lost = torch.stack([(w - dequantize(r.codes, r.scales).T) for w, r in zip(W, results, strict=True)])
        judged = (weighted_square(lost, H).sum(1) / weighted_square(W, H).sum(1)).tolist()
        del lost
        codes[precision] = [r.codes for r in results]
        found[precision] = {
            "seconds": round(whole, 4),
            "stages": stages.seconds(),
            "error": judged,
            "recorded_error_off_by": max(abs(r.error / j - 1) for r, j in zip(results, judged, strict=True)),
            "same_codes_as_float32": float(
                torch.stack(
                    [(a == b).float().mean() for a, b in zip(codes[precision], codes["float32"], strict=True)]
                ).mean()
            ),
            "rtn_error": results[0].rtn_error,
        }
    for precision in names[1:]:
        pairs = zip(found[precision]["error"], found["float32"]["error"], strict=True)
        found[precision]["error_over_float32"] = [round(a / b, 6) for a, b in pairs]
    return found


@triton.jit
def _round_column(w, missed, pivot, s, codes, d, num_rows, ROWS: tl.constexpr):
    batch, rows = tl.program_id(1), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here, at = rows < num_rows, batch * num_rows + rows
    x = tl.load(w + at, mask=here) + tl.load(missed + at, mask=here) / tl.load(pivot + batch)
    scale = tl.load(s + at, mask=here, other=1.0)
    x = tl.minimum(tl.maximum(tl.div_rn(x, scale), -8.0), 7.0)
    code = (x + 12582912.0) - 12582912.0
    tl.store(codes + at, code.to(tl.int8), mask=here)
    tl.store(d + at, tl.load(w + at, mask=here) - code * scale, mask=here)


@triton.jit
def _update_columns(missed, factor, d, num_rows, num_columns, ROWS: tl.constexpr):
    """missed [columns, batch, rows] += factor [batch, columns] d [batch, rows]."""
    column, batch = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here, at = rows < num_rows, batch * num_rows + rows
    place = missed + (column * tl.num_programs(2)) * num_rows + at
    left = tl.load(place, mask=here) + tl.load(factor + batch * num_columns + column) * tl.load(
        d + at, mask=here
    )
    tl.store(place, left, mask=here)


class TwoLaunches:
    """A block of columns with two launches a column, captured once; layout [columns, batch, rows]."""

    def __init__(self, batch: int, columns: int, rows: int) -> None:
        def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.ones(*size, dtype=dtype, device="cuda")

        self.w, self.d, self.missed, self.s = (empty(columns, batch, rows) for _ in range(4))
        self.codes, self.R = empty(columns, batch, rows, dtype=torch.int8), empty(columns, batch, columns)
        self.pivot = empty(columns, batch)
        self._size = (batch, columns, rows)
        self._launch()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._launch()

    def _launch(self) -> None:
        batch, columns, rows = self._size
        blocks = triton.cdiv(rows, 1024)
        for j in range(columns):
            _round_column[(blocks, batch)](
                self.w[j], self.missed[j], self.pivot[j], self.s[j], self.codes[j], self.d[j], rows, ROWS=1024
            )
            if j + 1 < columns:
                _update_columns[(blocks, columns - j - 1, batch)](
                    self.missed[j + 1 :], self.R[j, :, j + 1 :], self.d[j], rows, columns, ROWS=1024
                )

    def solve(self, D: Tensor, missed: Tensor, codes: Tensor, S: Tensor, groups: Tensor, R: Tensor) -> None:
        self.w.copy_(D.transpose(0, 1))
        self.missed.copy_(missed.transpose(0, 1))
        self.R.copy_(R.transpose(0, 1))
        self.pivot.copy_(R.diagonal(dim1=1, dim2=2).T)
        self.s.copy_(_scales_by_column(S, groups).transpose(0, 1))
        self._graph.replay()
        D.copy_(self.d.transpose(0, 1))
        codes.copy_(self.codes.transpose(0, 1))


def _scales_by_column(S: Tensor, groups: Tensor) -> Tensor:
    return S.gather(1, groups.long().unsqueeze(2).expand(-1, -1, S.shape[2]))


def solve_in_torch(D: Tensor, missed: Tensor, codes: Tensor, S: Tensor, groups: Tensor, R: Tensor) -> None:
    """The same column by column with torch's operators, the batch at once."""
    s = _scales_by_column(S, groups)
    for j in range(D.shape[1]):
        d, scale = D[:, j], s[:, j]
        q = d.add(missed[:, j] / R[:, j, j, None]).div_(scale).round_().clamp_(-8, 7)
        codes[:, j] = q
        d.sub_(q.mul_(scale))
        missed[:, j + 1 :].addcmul_(R[:, j, j + 1 :, None], d[:, None, :])


def compare_solves(layer: Layer) -> dict[str, Any]:
    """The solve of a batch's gate and up, and its columns' loops alone, three ways."""
    import moe4.gptq.gpu.solver as module

    W, H = layer.gate_up(BATCH)
    solver = BatchSolver(settings=layer.recipe.gptq, group_size=128)
    factors = solver._factorize(H)
    S, _ = solver._search(W, factors)
    two = TwoLaunches(BATCH, MAX_COLUMNS, W.shape[2])
    found: dict[str, Any] = {"experts": BATCH}
    expected: Tensor | None = None
    ours = module.solve_block
    ways = {
        "one launch a block": ours,
        "two launches a column, CUDA graph": two.solve,
        "plain torch": solve_in_torch,
    }
    missed, codes = (
        torch.zeros_like(W[:, :MAX_COLUMNS]),
        torch.empty(W[:, :MAX_COLUMNS].shape, dtype=torch.int8, device="cuda"),
    )
    groups = torch.div(factors.order, 128, rounding_mode="floor").to(torch.int32)
    here = slice(0, MAX_COLUMNS)
    for name, way in ways.items():
        module.solve_block = way
        try:
            result = solver._solve(W, S, factors)
            repeats = 1 if name == "plain torch" else 3
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(repeats):
                solver._solve(W, S, factors)
            torch.cuda.synchronize()
            whole = (time.perf_counter() - started) / repeats
        finally:
            module.solve_block = ours
        expected = result if expected is None else expected
        D = W[:, here].clone()
        block = seconds(
            lambda way=way, D=D: way(D, missed, codes, S, groups[:, here], factors.R[:, here, here]), 3
        )
        found[name] = {
            "seconds_for_the_batch": round(whole, 4),
            "seconds_a_layer_of_384": round(whole * 384 / BATCH, 2),
            "milliseconds_a_block_of_128": round(block * 1000, 4),
            "same_codes": float((result == expected).float().mean()),
        }
    slab = factors.R[:, :3584, 3584:4096].mT
    left = W[:, :3584]
    found["long product"] = {
        name: round(
            2 * BATCH * 512 * 3584 * W.shape[2] / seconds(lambda n=name: product(slab, left, n), 5) / 1e12, 1
        )
        for name in ("float32", "bf16x3")
    }
    found["tuning"] = _tune(W, S, groups, factors.R)
    return found


def _tune(W: Tensor, S: Tensor, groups: Tensor, R: Tensor) -> dict[str, float]:
    """Milliseconds of a block by rows a program and its warps."""
    import moe4.gptq.gpu.kernels as kernels

    here = slice(0, MAX_COLUMNS)
    missed = torch.zeros_like(W[:, here])
    codes = torch.empty(missed.shape, dtype=torch.int8, device="cuda")
    before, found = (kernels.SOLVE_ROWS, kernels.SOLVE_WARPS), {}
    for rows, warps in ((16, 1), (32, 1), (32, 2), (64, 2), (64, 4), (128, 4), (128, 8)):
        kernels.SOLVE_ROWS, kernels.SOLVE_WARPS = rows, warps
        D = W[:, here].clone()
        took = seconds(lambda D=D: solve_block(D, missed, codes, S, groups[:, here], R[:, here, here]), 5)
        found[f"{rows} rows, {warps} warps"] = round(took * 1000, 4)
    kernels.SOLVE_ROWS, kernels.SOLVE_WARPS = before
    return found


def compare_cpu(layer: Layer) -> dict[str, Any]:
    """One expert's gate on the CPU, by the code of a run there, and in a batch on the GPU."""
    W, H = layer.gate_up(1)
    half = W.shape[2] // 2
    W = W[:, :, :half].contiguous()
    solver = BatchSolver(settings=layer.recipe.gptq, group_size=128)
    gpu = solver.quantize(W, H, [half])[0][0]
    w, h = W[0].T.contiguous().cpu(), H[0].cpu()
    started = time.perf_counter()
    cpu = quantize_gptq([w], factorize(h, layer.recipe.gptq), 128, layer.recipe.gptq)[0]
    took = time.perf_counter() - started
    errors = {}
    for name, result in (("gpu", gpu), ("cpu", cpu)):
        lost = (W[0].T - dequantize(result.codes.cuda(), result.scales.cuda())).T.contiguous()[None]
        errors[name] = float(weighted_square(lost, H).sum() / weighted_square(W, H).sum())
    return {
        "cpu_seconds": round(took, 1),
        "threads": torch.get_num_threads(),
        "error": errors,
        "gpu_over_cpu": errors["gpu"] / errors["cpu"],
        "same_codes": float((gpu.codes.cpu() == cpu.codes).float().mean()),
        "same_scales": float((gpu.scales.cpu() == cpu.scales).float().mean()),
        "rtn_error": {"gpu": gpu.rtn_error, "cpu": cpu.rtn_error},
    }
