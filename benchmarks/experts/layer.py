"""A layer of routed experts with random weights, and calls of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe4.kernels import fused_experts_reference
from moe4.kernels.reference import dequantize

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden_states, topk_weights, topk_ids


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Random codes and scales, as a checkpoint holds them; shapes as in `moe4.kernels.fused_experts`."""

    w13_packed: Tensor
    w13_scale: Tensor
    w2_packed: Tensor
    w2_scale: Tensor
    group_size: int
    top_k: int

    @classmethod
    def make(cls, experts: int, hidden: int, inter: int, group_size: int, top_k: int) -> "Layer":
        def words(rows: int, columns: int) -> Tensor:
            return torch.randint(-(2**31), 2**31 - 1, (experts, rows, columns // 8), dtype=torch.int32)

        def scales(rows: int, columns: int) -> Tensor:
            return (torch.randn(experts, rows, columns // group_size) / (4.6 * columns**0.5)).bfloat16()

        return cls(
            w13_packed=words(2 * inter, hidden),
            w13_scale=scales(2 * inter, hidden),
            w2_packed=words(hidden, inter),
            w2_scale=scales(hidden, inter),
            group_size=group_size,
            top_k=top_k,
        )

    @property
    def experts(self) -> int:
        return self.w13_packed.shape[0]

    @property
    def hidden(self) -> int:
        return self.w2_packed.shape[1]

    @property
    def inter(self) -> int:
        return self.w2_packed.shape[2] * 8

    @property
    def bytes_per_expert(self) -> int:
        tensors = (self.w13_packed, self.w13_scale, self.w2_packed, self.w2_scale)
        return sum(tensor[0].nbytes for tensor in tensors)

    def flop(self, tokens: int) -> int:
        return 6 * tokens * self.top_k * self.hidden * self.inter

    def draw_call(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.rand(tokens, self.experts).topk(self.top_k, dim=1).indices
        return torch.randn(tokens, self.hidden).bfloat16(), torch.rand(tokens, self.top_k), ids

    def bf16(self) -> tuple[Tensor, Tensor]:
        """Return w13 and w2 in bfloat16: [experts, 2 * inter, hidden] and [experts, hidden, inter]."""
        pairs = ((self.w13_packed, self.w13_scale), (self.w2_packed, self.w2_scale))
        w13, w2 = (
            torch.stack(
                [dequantize(p, s, self.group_size).bfloat16() for p, s in zip(packed, scale, strict=True)]
            )
            for packed, scale in pairs
        )
        return w13, w2

    def reference(self, call: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the result in float64."""
        x, topk_weights, topk_ids = call
        return fused_experts_reference(
            x,
            self.w13_packed,
            self.w13_scale,
            self.w2_packed,
            self.w2_scale,
            topk_weights,
            topk_ids,
            group_size=self.group_size,
        )
