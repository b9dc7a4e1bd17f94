"""`int4_linear` against float64, its independence of batch and threads, its checks, its buffers' ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expert_cases import INTEGERS, U16, U32, rounding, weight_dtype
from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import available_paths, fused_experts, has_int4_linear, int4_linear
from moe4.kernels.reference import dequantize

SCRIPT = Path(__file__).with_name("guard_pages.py")
PATHS = available_paths()
UNITS = {torch.bfloat16: U16, torch.float16: 2.0**-11, torch.float32: U32}
SHAPES = [(32, 32, 32), (96, 224, 32), (64, 192, 64), (576, 640, 128), (160, 2048, 32), (32, 18432, 128)]


def make_case(
    tokens: int, rows: int, columns: int, group_size: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 7 + rows)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    words = torch.randint(-(2**31), 2**31, (rows, columns // 8), generator=generator).to(torch.int32)
    scales = torch.randn(rows, columns // group_size, generator=generator) / (4.6 * columns**0.5)
    scales[torch.rand(scales.shape, generator=generator) < 0.05] = 0
    return x, words, scales.to(torch.bfloat16)


def error_bound(x: Tensor, weight: Tensor, expected: Tensor, path: str, group_size: int) -> Tensor:
    """Return how far a result may lie from float64's; the analysis of `expert_cases.error_bound`."""
    terms, line = (68, 1024) if path == "avx512_bf16" else (2, group_size) if path in INTEGERS else (16, 32)
    values = x.double()
    exact = path == "avx512_bf16" and x.dtype == torch.bfloat16
    moved = torch.zeros_like(values) if exact else rounding(values, path, group_size)
    dot = (terms + 2 + x.shape[1] / line) * U32
    bound = (moved + dot * (values.abs() + moved)) @ weight.abs().T
    return bound + UNITS[x.dtype] * (expected.abs() + bound) + 2.0**-25


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
def test_agrees_with_float64(path: str, dtype: torch.dtype, rows: int, columns: int, group_size: int) -> None:
    for tokens in (0, 1, 2, 3, 6, 7, 13) if columns > 2048 else (0, 1, 2, 3, 4, 5, 6, 7, 13, 64, 250):
        x, words, scales = make_case(tokens, rows, columns, group_size, dtype)
        result = int4_linear(x, words, scales, group_size=group_size, path=path)
        assert (result.shape, result.dtype) == ((tokens, rows), dtype)
        weight = dequantize(words, scales, group_size).to(weight_dtype(path)).double()
        expected = x.double() @ weight.T
        bound = error_bound(x, weight, expected, path, group_size)
        assert bool(((result.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_depends_on_its_token_alone(path: str, num_threads: int) -> None:
    x, words, scales = make_case(300, 1056, 1312, 32)
    whole = int4_linear(x, words, scales, group_size=32, path=path)
    for part in (slice(0, 300), slice(0, 1), slice(5, 7), slice(11, 17), slice(20, 27), slice(40, 290)):
        found = int4_linear(x[part], words, scales, group_size=32, num_threads=num_threads, path=path)
        assert torch.equal(found, whole[part])


@pytest.mark.parametrize("path", PATHS)
def test_it_is_the_product_of_the_experts(path: str) -> None:
    """With gate and up of one expert from `int4_linear`, the expert's hidden values are `fused_experts`'s.

    down is the identity, so that they come out as they are: one group a row, code 1 or 0, scale 1.
    """
    x, words, scales = make_case(5, 64, 96, 32, torch.float32)
    identity = torch.eye(32, dtype=torch.int32) + 8
    down = (identity.unflatten(1, (-1, 8)).long() << torch.arange(0, 32, 4)).sum(-1)
    down = torch.cat([down] * 3).to(torch.int32)  # as many rows as x has columns
    y = fused_experts(
        x,
        words.unsqueeze(0),
        scales.unsqueeze(0),
        down.unsqueeze(0),
        torch.ones(1, 96, 1, dtype=torch.bfloat16),
        torch.ones(5, 1),
        torch.zeros(5, 1, dtype=torch.int64),
        group_size=32,
        path=path,
    )
    gate, up = int4_linear(x, words, scales, group_size=32, path=path).double().split(32, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    # What a path rounds the hidden values to, and float32.
    bound = rounding(expected, path, 32) + 16 * U32 * expected.abs() + 1e-9
    assert bool(((y[:, :32].double() - expected).abs() <= bound).all())


def test_rows_of_a_wider_tensor() -> None:
    x, words, scales = make_case(8, 64, 256, 64)
    wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)
    expected = int4_linear(x, words, scales, group_size=64)
    assert torch.equal(int4_linear(wide[:, :256], words, scales, group_size=64), expected)


def test_shapes_it_takes() -> None:
    assert has_int4_linear(32, 64, 64)
    for shape in ((48, 64, 64), (32, 96, 64), (32, 64, 16), (0, 64, 64), (32, 0, 32)):
        assert not has_int4_linear(*shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 64, dtype=torch.float64)}, "x: expected dtype bfloat16 or float16 or float32"),
        ({"x": torch.zeros(2, 32, dtype=torch.bfloat16)}, r"x: expected shape \[2, 64\], found \[2, 32\]"),
        ({"x": torch.zeros(64, dtype=torch.bfloat16)}, "x: expected a tensor of 2 dimensions"),
        ({"weight_packed": torch.zeros(48, 8, dtype=torch.int32)}, "weight_packed: expected rows a multiple"),
        ({"weight_packed": torch.zeros(8, 32, dtype=torch.int32).T}, "weight_packed: expected contiguous"),
        ({"weight_packed": torch.zeros(32, 8)}, "weight_packed: expected dtype int32, found float32"),
        (
            {"weight_scale": torch.zeros(32, 1, dtype=torch.bfloat16)},
            r"weight_scale: expected shape \[32, 2\], found \[32, 1\]",
        ),
        ({"weight_scale": torch.zeros(32, 2)}, "weight_scale: expected dtype bfloat16, found float32"),
        ({"group_size": 16}, "group_size: expected 32, 64 or 128, found 16"),
        ({"num_threads": 0}, "num_threads: expected at least 1, found 0"),
        ({"path": "sse9"}, "path: expected one of .*, found 'sse9'"),
    ],
)
def test_arguments(change: dict[str, object], message: str) -> None:
    x, words, scales = make_case(2, 32, 64, 32)
    arguments: dict[str, object] = {"x": x, "weight_packed": words, "weight_scale": scales, "group_size": 32}
    with pytest.raises(KernelError, match=f"^{message}"):
        int4_linear(**{**arguments, **change})  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="mmap's constants here are Linux's")
def test_it_stays_inside_its_buffers() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "int4_linear"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, f"signal or error {result.returncode}: {result.stderr}"
