"""`int8_linear` against float64, its independence of batch and threads, its checks, its buffers' ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import available_paths, has_int8_linear, int8_linear

SCRIPT = Path(__file__).with_name("guard_pages.py")
here = pytest.mark.skipif(not has_int8_linear(4, 32), reason="this processor has no AVX512-BF16")


def make_case(tokens: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 7 + rows)
    x = torch.randn(tokens, columns, generator=generator).to(torch.bfloat16)
    codes = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    scales = (torch.randn(rows, generator=generator) / 100).to(torch.bfloat16)  # of either sign
    return x, codes, scales


def test_there_where_the_path_is() -> None:
    assert has_int8_linear(4, 32) == ("avx512_bf16" in available_paths())
    assert not has_int8_linear(6, 32)
    assert not has_int8_linear(4, 48)


@here
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 6, 7, 13, 64, 250])
@pytest.mark.parametrize(("rows", "columns"), [(4, 32), (12, 64), (68, 1056), (132, 2048), (64, 992)])
def test_agrees_with_float64(tokens: int, rows: int, columns: int) -> None:
    x, codes, scales = make_case(tokens, rows, columns)
    result = int8_linear(x, codes, scales)
    assert result.shape == (tokens, rows)
    weight = codes.double() * scales.double().unsqueeze(1)
    expected, magnitude = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    # A product of two bfloat16 is exact in float32. Its sum passes at most 64 + 5 + columns / 1024 additions,
    # and the scale's product is one more; then one rounding to bfloat16.
    bound = (72 + columns / 1024) * 2.0**-24 * magnitude
    bound += 2.0**-8 * (expected.abs() + bound) * 1.01
    assert bool(((result.double() - expected).abs() <= bound).all())


@here
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_depends_on_its_token_alone(num_threads: int) -> None:
    x, codes, scales = make_case(300, 196, 1312)
    whole = int8_linear(x, codes, scales)
    assert torch.equal(int8_linear(x, codes, scales, num_threads=num_threads), whole)
    for part in (slice(0, 1), slice(5, 7), slice(11, 17), slice(20, 27), slice(40, 290)):
        assert torch.equal(int8_linear(x[part], codes, scales, num_threads=num_threads), whole[part])


@here
def test_rows_of_a_wider_tensor() -> None:
    x, codes, scales = make_case(8, 64, 256)
    wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)
    assert torch.equal(int8_linear(wide[:, :256], codes, scales), int8_linear(x, codes, scales))


@here
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 64)}, "x: expected dtype bfloat16, found float32"),
        ({"x": torch.zeros(2, 32, dtype=torch.bfloat16)}, r"x: expected shape \[2, 64\], found \[2, 32\]"),
        ({"x": torch.zeros(64, dtype=torch.bfloat16)}, "x: expected a tensor of 2 dimensions"),
        ({"codes": torch.zeros(6, 64, dtype=torch.int8)}, "codes: expected rows a multiple of 4"),
        ({"codes": torch.zeros(64, 8, dtype=torch.int8).T}, "codes: expected contiguous memory"),
        ({"codes": torch.zeros(8, 64, dtype=torch.uint8)}, "codes: expected dtype int8, found uint8"),
        ({"scales": torch.zeros(4, dtype=torch.bfloat16)}, r"scales: expected shape \[8\], found \[4\]"),
        ({"num_threads": 0}, "num_threads: expected at least 1, found 0"),
    ],
)
def test_arguments(change: dict[str, object], message: str) -> None:
    x, codes, scales = make_case(2, 8, 64)
    arguments: dict[str, object] = {"x": x, "codes": codes, "scales": scales, **change}
    with pytest.raises(KernelError, match=f"^{message}"):
        int8_linear(**arguments)  # type: ignore[arg-type]


@here
@pytest.mark.skipif(sys.platform != "linux", reason="mmap's constants here are Linux's")
def test_it_stays_inside_its_buffers() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "int8_linear"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, f"signal or error {result.returncode}: {result.stderr}"
