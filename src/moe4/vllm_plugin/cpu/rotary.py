"""Plain rotary positions of MLA on a CPU, where vLLM 0.32's own operator gets them wrong.

vLLM's MLA passes queries as [tokens, heads, rotary width], a part of a wider tensor. Its CPU operator
`rotary_embedding` takes the step from head to head for the step from token to token, and so rotates a few
elements several times and most not at all. Queries in two dimensions, which all other attention passes, and
YaRN, which DeepSeek's and Kimi's own releases use, are not affected.
"""

import torch
from torch import Tensor
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding


@CustomOp.register_oot(name="RotaryEmbedding")
class CpuRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's rotary embedding, which runs on torch's own operators where queries have three dimensions."""

    def forward_cpu(
        self, positions: Tensor, query: Tensor, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rotated query and key. With three dimensions the arguments stay as they are."""
        rotate = super().forward_cpu if query.dim() < 3 else super().forward_native
        rotated: tuple[torch.Tensor, torch.Tensor | None] = rotate(positions, query, key)
        return rotated
