"""The layer's parts beside other ways to do them."""

import time
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.gptq.gpu.products import gram
from moe4.gptq.gpu.solver import BatchSolver, Precision
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
    names: list[Precision] = ["float32", "float16"]
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
        judged = (_loss(lost, H) / _loss(W, H)).tolist()
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


def _loss(D: Tensor, H: Tensor) -> Tensor:
    """Return tr(D^T H D) of each member of a batch, by float32 products."""
    return torch.bmm(H, D).mul_(D).sum((1, 2), dtype=torch.float64)


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
        errors[name] = float(_loss(lost, H) / _loss(W, H))
    return {
        "cpu_seconds": round(took, 1),
        "threads": torch.get_num_threads(),
        "error": errors,
        "gpu_over_cpu": errors["gpu"] / errors["cpu"],
        "same_codes": float((gpu.codes.cpu() == cpu.codes).float().mean()),
        "same_scales": float((gpu.scales.cpu() == cpu.scales).float().mean()),
        "rtn_error": {"gpu": gpu.rtn_error, "cpu": cpu.rtn_error},
    }
