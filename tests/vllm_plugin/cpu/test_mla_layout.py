"""MLA's folded matrices on a CPU: laid out once, with the same values; that answers stay the same is tested
with whole models."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.vllm

HEADS, LATENT, WIDTH = 4, 32, 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrices_are_copied_once_in_16_bits(dtype: torch.dtype) -> None:
    from moe4.vllm_plugin.cpu.mla import lay_out_for_products

    both = torch.randn(HEADS, 2 * WIDTH, LATENT).to(dtype)
    views = {"W_UK_T": both[:, :WIDTH], "W_UV": both[:, WIDTH:].transpose(1, 2)}
    layer = SimpleNamespace(**{name: torch.nn.Parameter(view) for name, view in views.items()})
    lay_out_for_products(layer)
    found = [layer.W_UK_T, layer.W_UV]
    for matrix, view in zip(found, views.values(), strict=True):
        assert torch.equal(matrix, view)
        assert matrix.is_contiguous() == (dtype == torch.bfloat16)
    places = [matrix.data_ptr() for matrix in found]
    lay_out_for_products(layer)
    assert places == [matrix.data_ptr() for matrix in found]


def test_vllm_takes_the_plugins_backend() -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from moe4.vllm_plugin import register

    register()
    backend = AttentionBackendEnum.CPU_MLA.get_class()
    assert backend.__name__ == "ContiguousMLABackend"
    assert backend.get_name() == "CPU_MLA"
    assert backend.get_impl_cls().__name__ == "ContiguousMLAImpl"
