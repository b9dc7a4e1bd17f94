"""The routed experts of a layer: how they are called, and what they compute.

Our function in transformers' experts registry hands over what the router chose, and returns zero or what it
is given. So a decoder layer can run without its experts' weights: everything but the experts' sum is in its
output, and the experts' inputs, ids and gate weights are with whoever called `set_capture`.

Most routers give all experts of a token the same input, and weight what comes out. Others, such as Llama-4's,
call the experts with a copy of all tokens for each, already scaled, and zero where an expert is not chosen.
"""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe4.errors import UnsupportedModelError
from moe4.model.names import Part

EXPERTS_IMPLEMENTATION = "moe4_capture"

Capture = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""Called with inputs [tokens, hidden], expert ids [tokens, top_k], gate weights [tokens, top_k].

Where each expert of a token has an input of its own, these lie side by side, [tokens, top_k * hidden], and
the gate weights are 1. An id past the last expert is no expert. Gives the experts' sum [tokens, hidden], or
None for zero.
"""


def takes_copies(module: nn.Module) -> bool:
    """Say whether a module of routed experts is called with a copy of all tokens for each of them."""
    return len(inspect.signature(module.forward).parameters) == 1


def set_capture(module: nn.Module, capture: Capture, own_inputs: int = 0) -> None:
    """Have `capture` called whenever these experts are.

    own_inputs: the experts of a token, where each has an input of its own; else 0.
    """
    object.__setattr__(module, "moe4_capture", capture)
    if own_inputs:
        module.forward = types.MethodType(partial(capture_copies, own_inputs=own_inputs), module)
    elif not hasattr(module, "is_transposed"):  # not of those that ask the registry
        module.forward = types.MethodType(capture_experts, module)


def capture_experts(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Pass the experts' call to the capture that was set, and return what it gives, or zeros."""
    capture: Capture = object.__getattribute__(module, "moe4_capture")
    found = capture(hidden_states, top_k_index, top_k_weights)
    return torch.zeros_like(hidden_states) if found is None else found


def capture_copies(module: nn.Module, copies: Tensor, own_inputs: int) -> Tensor:
    """The same for experts that are called with copies of all tokens, [experts * tokens, hidden].

    An expert without biases makes zero of zero: where a copy is zero, it is as if it were not chosen. What is
    returned has the experts' sum in the first copy and zero in the others. Peak memory: two more of `copies`.

    Raises UnsupportedModelError where more than `own_inputs` copies of a token are not zero.
    """
    capture: Capture = object.__getattribute__(module, "moe4_capture")
    each = copies.view(len(module.down_proj), -1, copies.shape[-1])  # type: ignore[arg-type]
    is_chosen = torch.stack([(copy != 0).any(dim=-1) for copy in each], dim=1)
    if int(is_chosen.sum(dim=1).max()) > own_inputs:
        raise UnsupportedModelError(f"the router sends a token to more than {own_inputs} experts")
    order = torch.sort(is_chosen, dim=1, descending=True, stable=True).indices[:, :own_inputs]
    inputs = each[order, torch.arange(len(order), device=order.device).unsqueeze(1)]
    ids = torch.where(is_chosen.gather(1, order), order, len(each))
    found = capture(inputs.flatten(1), ids, torch.ones_like(ids, dtype=torch.float32))
    if found is None:
        return torch.zeros_like(copies)
    return torch.cat((found, copies.new_zeros(len(copies) - len(found), copies.shape[-1])))


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, capture_experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertMath:
    """What an expert computes between and after its products.

    experts: transformers' module, without weights. first_parts: the projections of an expert's input, gate
    and up or up alone. biases: of all experts of a layer, where there are any: `gate` and `up` [experts,
    width], `down` [experts, hidden].
    """

    experts: Any
    first_parts: tuple[Part, ...]
    biases: Mapping[Part, Tensor] = field(default_factory=dict)

    def run(self, expert: int | slice, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return an expert's output [tokens, hidden] for inputs [tokens, hidden].

        weights: [out, in] of each of its parts, down last, of one dtype and device with the inputs.
        Of several experts, each with as many tokens: inputs [experts, tokens, hidden], weights [experts, out,
        in].
        """
        *first, down = weights
        return self.output(expert, self.inner(expert, [inputs @ weight.mT for weight in first]) @ down.mT)

    def inner(self, expert: int | slice, products: Sequence[Tensor]) -> Tensor:
        """Return what the down projection gets, [tokens, width], of the products of `first_parts`.

        Of several experts, each with as many tokens: [experts, tokens, width].
        """
        from transformers.integrations.moe import _default_apply_gate

        biased = [
            self._add_bias(expert, part, product)
            for part, product in zip(self.first_parts, products, strict=True)
        ]
        if len(biased) == 1:
            return self.experts.act_fn(biased[0])  # type: ignore[no-any-return]
        gate, up = biased
        if getattr(type(self.experts), "_apply_gate", _default_apply_gate) is _default_apply_gate:
            return self.experts.act_fn(gate) * up  # type: ignore[no-any-return]
        joined = torch.cat((gate, up), dim=-1)
        if not getattr(self.experts, "is_concatenated", True):
            joined = torch.stack((gate, up), dim=-1).flatten(-2)
        return self.experts._apply_gate(joined)  # type: ignore[no-any-return]

    def output(self, expert: int | slice, product: Tensor) -> Tensor:
        """Return the output [tokens, hidden], or of several experts, of the down projection's product."""
        return self._add_bias(expert, "down", product)

    def _add_bias(self, expert: int | slice, part: Part, product: Tensor) -> Tensor:
        """Add a bias [..., width], the same for every token."""
        return product + self.biases[part][expert].unsqueeze(-2) if part in self.biases else product
