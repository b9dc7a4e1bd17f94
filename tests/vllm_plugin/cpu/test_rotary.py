"""Rotary positions through vLLM's layer on a CPU, with the plugin, against complex numbers in float64."""

import pytest
import torch

pytestmark = pytest.mark.vllm

WIDTH, HEADS, TOKENS, THETA = 64, 4, 7, 10000.0


def rotate(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Turn each pair of neighbours by its angle. values: [tokens, heads, width]."""
    angles = positions[:, None].double() / THETA ** (torch.arange(0, WIDTH, 2).double() / WIDTH)
    pairs = torch.view_as_complex(values.double().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None, :]
    return torch.view_as_real(turned).flatten(-2)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_in_any_layout_are_rotated(dimensions: int, dtype: torch.dtype) -> None:
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    from moe4.vllm_plugin import register

    register()
    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([5, 0, 1, 2, 3, 700, 4])
    # As MLA passes them: parts of wider tensors.
    query = torch.randn(TOKENS, HEADS, 192, generator=generator).to(dtype)[..., 128:]
    key = torch.randn(TOKENS, 576, generator=generator).to(dtype)[:, None, 512:]
    expected = rotate(query, positions), rotate(key, positions)
    if dimensions == 2:
        query, key = query.flatten(1), key.flatten(1)
    with set_current_vllm_config(VllmConfig()):
        parameters = {"rope_theta": THETA, "rope_type": "default"}
        rope = get_rope(
            WIDTH, max_position=1024, rope_parameters=parameters, is_neox_style=False, dtype=torch.float32
        )
    # One rounding of the angle at position 700 in float32, or of the result and cos, sin in bfloat16.
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    for found, right in zip(rope.forward_cpu(positions, query, key), expected, strict=True):
        assert torch.allclose(found.double().reshape(right.shape), right, atol=tolerance, rtol=0)
