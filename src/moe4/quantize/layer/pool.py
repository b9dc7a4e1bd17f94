"""All tokens of a layer, which stand in for a cold expert's own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe4.gptq.hessian import Hessian
from moe4.quantize.layer.attend import Routing, pack_hessian, sum_hessians
from moe4.quantize.layer.workbench import Workbench
from moe4.quantize.transfer.ranks import Parcel

POOL_TOKENS = 1024  # tokens of the whole layer that stand in for a cold expert's own in down's Hessian
POOL_PART = 32768  # tokens whose Hessian one rank adds up


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """A layer's tokens as its experts see them: all inputs of any of them."""

    hessian: Tensor
    """Of all of these, float32 [hidden, hidden]."""
    tokens: Tensor
    """Some of them, [inputs, hidden] in the compute dtype, on the device."""


def pool_tokens(bench: Workbench, routing: Routing, add: Callable[[Hessian, int, int], None]) -> Pool:
    """Return the pool; `add` adds the inputs from one number to another to a Hessian."""
    num_inputs, hidden_size = routing.inputs.shape

    def part(number: int) -> Parcel:
        hessian = Hessian(hidden_size, bench.device)
        add(hessian, number * POOL_PART, min((number + 1) * POOL_PART, num_inputs))
        return pack_hessian(hessian)

    pooled = sum_hessians(bench, -(-num_inputs // POOL_PART), part, hidden_size)
    stride = max(1, num_inputs // POOL_TOKENS)
    tokens = routing.inputs.read(torch.arange(0, num_inputs, stride)[:POOL_TOKENS])
    return Pool(hessian=pooled.mean(), tokens=tokens.to(bench.device))
