"""The expert forward in float64: slow, plain, and the oracle the kernels are tested against.

It shares no code with the kernels: pure torch, its own decoding of the packed words.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu


def unpack_codes(packed: Tensor) -> Tensor:
    """Decode int32 words [..., words] to int8 codes [..., 8 * words] in -8..7.

    Code k of each eight sits at bits 4k..4k+3 (least significant first), stored as code + 8.
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    nibbles = (packed.unsqueeze(-1) >> shifts) & 15
    return (nibbles - 8).to(torch.int8).flatten(-2)


def dequantize(packed: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """Return the float64 weights [rows, columns] of one matrix.

    packed: int32 [rows, columns / 8]. scale: [rows, columns / group_size], of either sign.
    """
    codes = unpack_codes(packed).double()
    return codes * scale.double().repeat_interleave(group_size, dim=-1)


def fused_experts_reference(
    hidden_states: Tensor,
    w13_packed: Tensor,
    w13_scale: Tensor,
    w2_packed: Tensor,
    w2_scale: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    group_size: int,
    weight_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Compute what `moe4.kernels.fused_experts` approximates, in float64.

    Arguments as there; they are not checked. The decoded weights are rounded to `weight_dtype` first: with
    torch.bfloat16 they are those of the decoded checkpoint. Returns float64 [tokens, hidden]. Memory: one
    expert in float64.
    """
    x = hidden_states.double()
    out = torch.zeros_like(x)
    inter = w13_packed.shape[1] // 2
    for expert in range(w13_packed.shape[0]):
        token, slot = (topk_ids == expert).nonzero(as_tuple=True)
        if len(token) == 0:
            continue
        w13 = dequantize(w13_packed[expert], w13_scale[expert], group_size).to(weight_dtype).double()
        w2 = dequantize(w2_packed[expert], w2_scale[expert], group_size).to(weight_dtype).double()
        gate_up = x[token] @ w13.T
        y = (silu(gate_up[:, :inter]) * gate_up[:, inter:]) @ w2.T
        out.index_add_(0, token, y * topk_weights[token, slot].double().unsqueeze(-1))
    return out
