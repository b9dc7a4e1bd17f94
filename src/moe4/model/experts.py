"""The routed experts of a layer: how they are called, and what they compute.

Our function in transformers' experts registry hands over what the router chose, and returns zero or what it
is given. So a decoder layer can run without its experts' weights: everything but the experts' sum is in its
output, and the experts' inputs, ids and gate weights are with whoever called `set_capture`.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EXPERTS_IMPLEMENTATION = "moe4_capture"
BIASES = ("gate_bias", "up_bias", "down_bias")

Capture = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""Called with hidden states [tokens, hidden], expert ids [tokens, top_k], gate weights [tokens, top_k].

Gives the experts' sum [tokens, hidden], or None for zero.
"""


def set_capture(module: nn.Module, capture: Capture) -> None:
    """Have `capture` called whenever these experts are."""
    object.__setattr__(module, "moe4_capture", capture)
    if not hasattr(module, "is_transposed"):  # not of those that ask the registry
        module.forward = types.MethodType(capture_experts, module)


def capture_experts(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Pass the experts' call to the capture that was set, and return what it gives, or zeros."""
    capture: Capture = object.__getattribute__(module, "moe4_capture")
    found = capture(hidden_states, top_k_index, top_k_weights)
    return torch.zeros_like(hidden_states) if found is None else found


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, capture_experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertMath:
    """What an expert computes between and after its products.

    Biases, of all experts of a layer: `gate` and `up` [experts, width], `down` [experts, hidden]; or None.
    """

    experts: Any
    """transformers' module, without weights."""
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def biases(self) -> dict[str, Tensor]:
        """Return the biases by field, if there are any."""
        found = {name: getattr(self, name) for name in BIASES}
        return {name: bias for name, bias in found.items() if bias is not None}

    def inner(self, expert: int | slice, gate: Tensor, up: Tensor) -> Tensor:
        """Return what the down projection gets, [tokens, width], of the other two's products.

        Of several experts, each with as many tokens: [experts, tokens, width].
        """
        from transformers.integrations.moe import _default_apply_gate

        if self.gate_bias is not None and self.up_bias is not None:
            gate, up = gate + _rows(self.gate_bias[expert]), up + _rows(self.up_bias[expert])
        if getattr(type(self.experts), "_apply_gate", _default_apply_gate) is _default_apply_gate:
            return self.experts.act_fn(gate) * up  # type: ignore[no-any-return]
        joined = torch.cat((gate, up), dim=-1)
        if not getattr(self.experts, "is_concatenated", True):
            joined = torch.stack((gate, up), dim=-1).flatten(-2)
        return self.experts._apply_gate(joined)  # type: ignore[no-any-return]

    def output(self, expert: int | slice, product: Tensor) -> Tensor:
        """Return the output [tokens, hidden], or of several experts, of the down projection's product."""
        return product if self.down_bias is None else product + _rows(self.down_bias[expert])


def _rows(bias: Tensor) -> Tensor:
    """Return a bias [..., width] that is the same for every token, [..., 1, width]."""
    return bias.unsqueeze(-2)
