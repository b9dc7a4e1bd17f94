"""Experts whose inputs the router scales, a copy of the tokens for each, held to transformers' block."""

import pytest
import torch
from torch import Tensor
from transformers import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from moe4.errors import UnsupportedModelError
from moe4.model.experts import ExpertMath, set_capture, takes_copies

HIDDEN, WIDTH, EXPERTS, TOP_K, TOKENS = 32, 24, 4, 2, 7


def make_block() -> Llama4TextMoe:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        num_attention_heads=2,
        num_hidden_layers=1,
    )
    block = Llama4TextMoe(config)
    for parameter in block.parameters():
        parameter.data = torch.randn_like(parameter) / 4
    return block.eval().requires_grad_(False)


def test_scaled_inputs_and_their_sum_are_the_blocks() -> None:
    block = make_block()
    experts, states = block.experts, torch.randn(1, TOKENS, HIDDEN)
    assert takes_copies(experts)
    expected, logits = block(states)
    math = ExpertMath(experts=experts, first_parts=("gate", "up"))
    seen: list[tuple[Tensor, Tensor]] = []

    def give(inputs: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        assert torch.equal(gates, torch.ones(TOKENS, TOP_K))
        seen.append((inputs.view(TOKENS, TOP_K, HIDDEN), ids))
        total = torch.zeros(TOKENS, HIDDEN)
        for slot in range(TOP_K):
            for token in range(TOKENS):
                expert = int(ids[token, slot])
                gate, up = experts.gate_up_proj[expert].T.chunk(2)
                x = seen[-1][0][token, slot].unsqueeze(0)
                total[token] += math.run(expert, x, [gate, up, experts.down_proj[expert].T])[0]
        return total

    set_capture(experts, give, TOP_K)
    found, _ = block(states)
    assert torch.allclose(found, expected, atol=1e-5)
    ((inputs, ids),) = seen
    chosen = logits.topk(TOP_K, dim=1).indices
    assert torch.equal(ids.sort(1).values, chosen.sort(1).values)
    scales = torch.sigmoid(logits.gather(1, ids))
    assert torch.allclose(inputs, states[0].unsqueeze(1) * scales.unsqueeze(2))


def test_a_token_with_fewer_experts_has_ids_past_the_last() -> None:
    """As where its scaled input is zero: experts make zero of it."""
    block, seen = make_block(), []
    set_capture(block.experts, lambda *call: seen.append(call), TOP_K)
    states = torch.randn(1, TOKENS, HIDDEN)
    states[0, 3] = 0.0
    block(states)
    ((_, ids, _),) = seen
    assert ids[3].tolist() == [EXPERTS, EXPERTS]
    assert bool((ids[[0, 1, 2, 4, 5, 6]] < EXPERTS).all())


def test_more_experts_than_the_config_says_are_refused() -> None:
    block = make_block()
    set_capture(block.experts, lambda *_: None, 1)
    with pytest.raises(UnsupportedModelError, match="sends a token to more than 1 experts"):
        block(torch.randn(1, TOKENS, HIDDEN))


def test_an_expert_without_a_gate_is_its_activation_alone() -> None:
    class Experts:
        act_fn = torch.nn.ReLU()

    up, down, x = torch.randn(WIDTH, HIDDEN), torch.randn(HIDDEN, WIDTH), torch.randn(TOKENS, HIDDEN)
    math = ExpertMath(experts=Experts(), first_parts=("up",), biases={"up": torch.ones(EXPERTS, WIDTH)})
    assert torch.allclose(math.run(2, x, [up, down]), torch.relu(x @ up.T + 1) @ down.T)
