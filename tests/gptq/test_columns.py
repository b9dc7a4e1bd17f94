"""The C++ loops against torch and float64, on every path this machine has."""

import pytest
import torch
from torch import Tensor

from moe4.checkpoint.packed import dequantize
from moe4.errors import KernelError
from moe4.gptq import columns
from moe4.gptq.columns import PATHS, selected_path
from moe4.gptq.factor import damped_factor, weighted_square
from moe4.gptq.grid import round_to_grid, search_scales
from moe4.gptq.solver import relative_error, solve

CPP_PATHS = [path for path in PATHS if path != "torch"]


@pytest.fixture(autouse=True)
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops are compared here; what bf16 does to the products around them is for test_products.py."""
    monkeypatch.setenv("MOE4_PRODUCTS", "float32")


def problem(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights [rows, size] and a Hessian of correlated inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    gains = torch.exp(torch.randn(size, generator=generator, dtype=torch.float64))
    x = torch.randn(2 * size, size, generator=generator, dtype=torch.float64) @ mixing * gains
    W = torch.randn(rows, size, generator=generator, dtype=torch.float64) / size**0.5
    return W, 2 / x.shape[0] * x.T @ x


def test_the_machine_has_a_path_and_the_choice_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "portable" in PATHS
    assert selected_path(torch.zeros(1)) == PATHS[0]
    assert selected_path(torch.zeros(1, dtype=torch.float64)) == "torch"
    monkeypatch.setenv("MOE4_COLUMNS", "portable")
    assert selected_path(torch.zeros(1)) == "portable"
    monkeypatch.setenv("MOE4_COLUMNS", "mmx")
    with pytest.raises(KernelError, match="found 'mmx'"):
        selected_path(torch.zeros(1))


@pytest.mark.parametrize("rows", [1, 33, 200])
@pytest.mark.parametrize(("size", "group_size"), [(64, 32), (384, 64), (640, 128)])
@pytest.mark.parametrize("path", CPP_PATHS)
def test_same_codes_as_torch_and_float64_up_to_ties(
    path: str, size: int, group_size: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    W, H = problem(rows, size)
    order = torch.argsort(H.diagonal(), descending=True)
    scales = search_scales(W, H.diagonal(), group_size, signed=True, candidates=4, shrink=0.8)
    result = damped_factor(H, order, 0.01)
    assert result is not None
    R = result[0]
    exact = solve(W, scales, R, order)
    arguments = (W.float(), scales.float(), R.float(), order)
    monkeypatch.setenv("MOE4_COLUMNS", path)
    codes = solve(*arguments)
    monkeypatch.setenv("MOE4_COLUMNS", "torch")
    in_torch = solve(*arguments)
    # Float32 sums in another order differ by some 1e-6 of a step: a target that close to a half may go either
    # way, and one code that does changes what the rest of its row makes up for. Few rows may have one; no
    # row's loss may change by more than such a tie can make.
    for other in (exact, in_torch):
        same = (codes == other).all(1)
        assert same.float().mean() > 0.9
        for row in (~same).nonzero().flatten().tolist():
            here = slice(row, row + 1)
            losses = [
                relative_error(W[here], dequantize(c[here], scales[here]).double(), H) for c in (codes, other)
            ]
            assert losses[0] == pytest.approx(losses[1], rel=0.25)


@pytest.mark.parametrize("path", CPP_PATHS)
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE4_COLUMNS", path)
    W, H = problem(150, 256, seed=3)
    order = torch.arange(256)
    result = damped_factor(H.float(), order, 0.01)
    assert result is not None
    generator = torch.Generator().manual_seed(0)
    D = W.T.float().contiguous()
    missed = torch.randn(256, 150, generator=generator) * 1e-3
    S, groups = torch.full((2, 150), 0.01), torch.arange(256) // 128

    def run(rows: slice) -> tuple[Tensor, Tensor]:
        d, codes = (
            D[:, rows].clone(memory_format=torch.contiguous_format),
            torch.empty(256, rows.stop - rows.start, dtype=torch.int8),
        )
        columns.solve_block(
            d, missed[:, rows].contiguous(), codes, S[:, rows].contiguous(), groups, result[0]
        )
        return d, codes

    whole = run(slice(0, 150))
    part = run(slice(70, 91))
    assert torch.equal(whole[0][:, 70:91], part[0])
    assert torch.equal(whole[1][:, 70:91], part[1])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(slice(0, 150))[1], whole[1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("path", CPP_PATHS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_the_same_scales_as_torch(path: str, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    W, H = problem(70, 384, seed=5)
    W[3, :group_size] = 0
    importance = H.diagonal().float()
    found = {}
    for name in (path, "torch"):
        monkeypatch.setenv("MOE4_COLUMNS", name)
        found[name] = search_scales(W.float(), importance, group_size, signed=True, candidates=24, shrink=0.6)
    differing = found[path] != found["torch"]
    assert differing.float().mean() < 0.01
    # Where they differ, both err alike: the candidates tie in float32.
    diagonal = torch.diag(importance)
    losses = [
        relative_error(W.float(), dequantize(round_to_grid(W.float(), s), s), diagonal)
        for s in found.values()
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.equal(found[path], found[path].bfloat16().float())
    assert bool((found[path] != 0).all())


def test_weighted_square_is_the_trace() -> None:
    W, H = problem(7, 1300)
    assert weighted_square(W, H) == pytest.approx(float(torch.trace(W @ H @ W.T)), rel=1e-12)
    assert weighted_square(W, None) == pytest.approx(float(torch.trace(W @ W.T)), rel=1e-12)
