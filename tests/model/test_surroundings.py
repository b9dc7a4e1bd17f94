"""What layers get from their model: for some families it depends on the token ids."""

import json
from typing import Any

import pytest
import torch
from family_models import make_config, make_model

from moe4.config import parse_config
from moe4.errors import TensorError
from moe4.model.architecture import Network

CPU = torch.device("cpu")


def make_network(family: str, dtype: torch.dtype = torch.float32) -> Network:
    document: dict[str, Any] = json.loads(make_config(family).to_json_string())
    return Network(parse_config(document), dtype)


def test_a_family_that_routes_by_token_ids_gets_the_batchs() -> None:
    network = make_network("deepseek_v4")
    assert network.needs_ids
    for ids in (torch.tensor([[5, 9, 2], [7, 7, 1]]), torch.tensor([[1, 2, 3], [4, 5, 6]])):
        calls = network.calls(2, 3, CPU, ids)
        assert all(torch.equal(named["input_ids"], ids) for _, named in calls)


def test_other_families_get_the_same_whatever_the_tokens_are() -> None:
    network = make_network("gpt_oss")
    assert not network.needs_ids
    assert network.calls(2, 3, CPU) is network.calls(2, 3, CPU, torch.ones(2, 3, dtype=torch.int64))


def test_a_table_that_names_no_expert_of_the_layer_is_refused() -> None:
    network, state = make_network("deepseek_v4"), make_model("deepseek_v4").state_dict()
    tensors = {stored: state[f"model.layers.0.{local}"] for stored, local, _ in network._layer_tensors(0)}
    tensors["model.layers.0.ffn.gate.tid2eid"][3, 1] = 4
    with pytest.raises(TensorError, match="tid2eid names expert 4; expected 0 to 3"):
        network.build_layer(0, tensors.__getitem__, CPU)


def test_tables_of_whole_numbers_stay_whole_and_norms_in_float32_answer_in_the_networks_dtype() -> None:
    network, model = make_network("deepseek_v4", torch.bfloat16), make_model("deepseek_v4")
    state = model.state_dict()
    tensors = {stored: state[f"model.layers.0.{local}"] for stored, local, _ in network._layer_tensors(0)}
    layer = network.build_layer(0, tensors.__getitem__, CPU)
    assert layer.mlp.gate.tid2eid.dtype is torch.int64
    assert {name for name in network.integers if ".layers.0." in name} == {"model.layers.0.ffn.gate.tid2eid"}
    norm = layer.input_layernorm
    assert norm.weight.dtype is torch.float32
    states = torch.randn(1, 2, 64).to(torch.bfloat16)
    assert norm(states).dtype is torch.bfloat16
