"""A layer's experts through vLLM's Marlin MoE kernel, with words and scales put in order by us or by vLLM.

The kernel takes a matrix [in, out] in tiles of 16 x 64, in the order in which the threads of a warp want the
operands of their matrix instruction, and a group's scales in that order too. `prepare_alone` makes that order
without vLLM and so sees the kernel alone. `prepare_by_vllm` has vLLM process the weights as it does when it
loads a model, and so sees what a server would compute.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import silu

from moe4.checkpoint.packed import pack

UINT4B8 = 1125899907892224  # vLLM's number for codes stored as q + 8
BLOCK_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """Codes int8 [experts, out, in] and scales [experts, out, groups] of gate above up, and of down."""

    gate_up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]

    @property
    def group_size(self) -> int:
        """Codes that share a scale."""
        codes, scales = self.gate_up
        return codes.shape[2] // scales.shape[2]


Prepared = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Words and scales of all experts as the kernel takes them: of gate and up, and of down."""


def load_kernel(library: Path) -> None:
    """Load vLLM's `_moe_C_stable_libtorch.abi3.so`, whose operators need nothing but torch."""
    torch.ops.load_library(str(library))


def to_tiles(codes: Tensor) -> Tensor:
    """Return codes [out, in], -8..7, as words of eight, int32 [in / 16, out * 2]."""
    num_rows, num_columns = codes.shape
    nibbles = (codes.T.int() + 8).reshape(num_columns // 16, 2, 4, 2, num_rows // 64, 4, 2, 8)
    # [k tile, k half, k quad, k of two | n tile, n quarter, n half, n]: a thread is (n, k quad).
    nibbles = nibbles.permute(0, 4, 7, 2, 5, 6, 1, 3).reshape(-1, 8)
    nibbles = nibbles[:, [0, 2, 4, 6, 1, 3, 5, 7]].long()
    words = sum(nibbles[:, place] << (4 * place) for place in range(8))
    assert isinstance(words, Tensor)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.int().reshape(num_columns // 16, num_rows * 2)


def to_scale_tiles(scales: Tensor) -> Tensor:
    """Return scales [out, groups] in the kernel's order, bf16 [groups, out]; one group has another order."""
    groups = scales.shape[1]
    tiles = scales.T.reshape(groups, -1, 8, 8).transpose(2, 3)
    if groups == 1:
        tiles = scales.T.reshape(1, -1, 4, 4, 2).transpose(2, 3)
    return tiles.reshape(groups, -1).to(torch.bfloat16)


def prepare_alone(experts: Experts) -> Prepared:
    """Put words and scales into the kernel's order without vLLM."""
    gate_up, down = (
        (
            torch.stack([to_tiles(c) for c in codes]).contiguous(),
            torch.stack([to_scale_tiles(s) for s in scales]).contiguous(),
        )
        for codes, scales in (experts.gate_up, experts.down)
    )
    return gate_up, down


def prepare_by_vllm(experts: Experts) -> Prepared:
    """Have vLLM process the weights as when it loads a model on one GPU. Needs vLLM whole, 0.26 or newer."""
    from vllm.model_executor.layers.fused_moe.oracle import int_wna16

    (gate_up, gate_up_scales), (down, down_scales) = experts.gate_up, experts.down
    process = int_wna16._process_weights_marlin
    weights: dict[str, Tensor | None] = {
        "w13_qweight": torch.stack([pack(codes) for codes in gate_up]),
        "w2_qweight": torch.stack([pack(codes) for codes in down]),
        "w13_scales": gate_up_scales.to(torch.bfloat16),
        "w2_scales": down_scales.to(torch.bfloat16),
    }
    if "actorder" in inspect.signature(process).parameters:  # 0.26: K first, and indices of activation order
        weights = {name: weight.mT.contiguous() for name, weight in weights.items()}
        none = torch.empty(len(down), 0, dtype=torch.int32, device=down.device)
        weights |= {"actorder": None, "w13_g_idx": none, "w2_g_idx": none}
    layer = SimpleNamespace(intermediate_size_per_partition=down.shape[2])
    done = process(
        layer=layer, input_dtype=None, num_bits=4, pack_factor=8, group_size=experts.group_size, **weights
    )
    return (done[0], done[2]), (done[1], done[3])


def multiply(
    x: Tensor, weight: tuple[Tensor, Tensor], size: tuple[int, int], ids: Tensor, gates: Tensor, *, last: bool
) -> Tensor:
    """Return rows of x through their experts, bf16 [tokens * top_k, out], times their gates if `last`.

    x [tokens, in], or [tokens * top_k, in] if `last`; ids, gates [tokens, top_k]; size, (out, in).
    """
    num_experts, top_k = len(weight[0]), ids.shape[1]
    longest = ids.numel() + num_experts * (BLOCK_TOKENS - 1)
    order = torch.empty(longest, dtype=torch.int32, device=x.device)
    owners = torch.empty(math.ceil(longest / BLOCK_TOKENS), dtype=torch.int32, device=x.device)
    padded = torch.empty(1, dtype=torch.int32, device=x.device)
    torch.ops._moe_C.moe_align_block_size(ids, num_experts, BLOCK_TOKENS, order, owners, padded, None, None)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    output = torch.empty(ids.numel(), size[0], dtype=x.dtype, device=x.device)
    return torch.ops._moe_C.moe_wna16_marlin_gemm(  # type: ignore[no-any-return]
        *(x, output, weight[0], None, weight[1], None, None, None),
        torch.zeros(4 * processors, dtype=torch.int32, device=x.device),
        *(order, owners, padded, gates, BLOCK_TOKENS, 1 if last else top_k, last, UINT4B8),
        *(x.shape[0], size[0], size[1], False, True, False, -1, -1, -1),
    )


def run_experts(
    x: Tensor, experts: Experts, ids: Tensor, gates: Tensor, prepare: Callable[[Experts], Prepared]
) -> Tensor:
    """Return the layer's output for bf16 x [tokens, hidden], by the kernel."""
    (two_width, hidden), width = experts.gate_up[0].shape[1:], experts.down[0].shape[2]
    gate_up, down = prepare(experts)
    both = multiply(x, gate_up, (two_width, hidden), ids, gates, last=False)
    inner = silu(both[:, :width]) * both[:, width:]
    output = multiply(inner, down, (hidden, width), ids, gates, last=True)
    return output.view(*ids.shape, hidden).float().sum(1)


def run_exactly(x: Tensor, experts: Experts, ids: Tensor, gates: Tensor) -> Tensor:
    """Return the same in float64, with the weights code times scale."""
    gate_up, down = (
        (codes.double().unflatten(2, (-1, experts.group_size)) * scales.double().unsqueeze(3)).flatten(2)
        for codes, scales in (experts.gate_up, experts.down)
    )
    total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert in range(len(down)):
        tokens, place = (ids == expert).nonzero(as_tuple=True)
        gate, up = (x[tokens].double() @ gate_up[expert].T).chunk(2, dim=1)
        output = (silu(gate) * up) @ down[expert].T
        total.index_add_(0, tokens, output * gates[tokens, place].double().unsqueeze(1))
    return total


def compare(
    experts: Experts, top_k: int, num_tokens: int, prepare: Callable[[Experts], Prepared]
) -> dict[str, float]:
    """Relative error of the kernel against float64, with the scales as they are and without their signs."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, count = experts.down[0].shape[1], len(experts.down[0])
    x = torch.randn(num_tokens, hidden, device="cuda", generator=generator).bfloat16()
    scores = torch.rand(num_tokens, count, device="cuda", generator=generator)
    gates, ids = scores.topk(top_k, dim=1)
    gates = (gates / gates.sum(1, keepdim=True)).float()
    ids = ids.int()
    exact = run_exactly(x, experts, ids, gates)
    unsigned = Experts(
        gate_up=(experts.gate_up[0], experts.gate_up[1].abs()), down=(experts.down[0], experts.down[1].abs())
    )

    def error(found: Tensor, expected: Tensor) -> float:
        return float((found.double() - expected).norm() / expected.norm())

    return {
        "negative_scales": float(
            (torch.cat([s.flatten() for _, s in (experts.gate_up, experts.down)]) < 0).float().mean()
        ),
        "error": error(run_experts(x, experts, ids, gates, prepare), exact),
        "error_of_the_same_without_signs": error(
            run_experts(x, unsigned, ids, gates, prepare), run_exactly(x, unsigned, ids, gates)
        ),
        "error_if_signs_were_lost": error(run_experts(x, unsigned, ids, gates, prepare), exact),
    }
