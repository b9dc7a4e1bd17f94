"""A layer of routed experts with random weights, and calls of it.

Imports torch alone: engines in environments of their own read the same layer, see `peers`.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Call = tuple[Tensor, Tensor, Tensor]
CALL_NAMES = ("hidden_states", "topk_weights", "topk_ids")


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

    @classmethod
    def load(cls, file: Path) -> "Layer":
        """Read what `save` wrote, into memory of the process's own."""
        values = {name: tensor.clone() for name, tensor in load_file(file).items()}
        sizes = {name: int(values.pop(name)) for name in ("group_size", "top_k")}
        return cls(**values, **sizes)

    def save(self, file: Path) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        save_file({name: torch.as_tensor(value) for name, value in values.items()}, file)

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

    def draw_call(self, tokens: int, experts: int | None = None) -> Call:
        """Draw activations, weights and choices, from the first `experts` of the layer or from all."""
        ids = torch.rand(tokens, experts or self.experts).topk(self.top_k, dim=1).indices
        return torch.randn(tokens, self.hidden).bfloat16(), torch.rand(tokens, self.top_k), ids
