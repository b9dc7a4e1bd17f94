"""vLLM's MLA backend for CPUs with its two matrices laid out for the product they are used in.

vLLM 0.32 takes W_UK and W_UV, which fold the latent into queries and out of values, as views into the weight
of kv_b_proj. torch's batched product in 16 bits copies a matrix that is not contiguous, so at every token and
layer both were copied: with Kimi-K2's widths that took longer than all the rest of MLA. Here they are copied
once, at the first token: 16.8 MB a layer of Kimi-K2, 1 GB in all, split over tensor parallel ranks.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend, CPUMLAImpl
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend


@register_backend(AttentionBackendEnum.CPU_MLA)
class ContiguousMLABackend(CPUMLABackend):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's backend with the implementation below."""

    @staticmethod
    def get_impl_cls() -> type["ContiguousMLAImpl"]:
        """Return the implementation's class."""
        return ContiguousMLAImpl


class ContiguousMLAImpl(CPUMLAImpl):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's implementation; lays out the layer's matrices when a token is first decoded."""

    def forward_mqa(
        self, q: Any, kv_c_and_k_pe_cache: Tensor, attn_metadata: Any, layer: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention over the latent cache, [tokens, heads, latent], and None."""
        lay_out_for_products(layer)
        result: tuple[Tensor, Tensor | None] = super().forward_mqa(
            q, kv_c_and_k_pe_cache, attn_metadata, layer
        )
        return result


def lay_out_for_products(layer: Any) -> None:
    """Make `layer.W_UK_T` and `layer.W_UV` contiguous where torch would copy them at every token.

    In float32 it takes them as they are.
    """
    for matrix in (layer.W_UK_T, layer.W_UV):
        if matrix.dtype != torch.float32 and not matrix.is_contiguous():
            matrix.data = matrix.data.contiguous()
