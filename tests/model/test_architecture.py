"""Layers without their experts: built from a config, loaded, run with our experts function."""

import json
from pathlib import Path

import pytest
import torch
from model_fixtures import random_state, reference_config
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

from moe4.config import parse_config
from moe4.errors import TensorError, UnsupportedModelError
from moe4.model.architecture import Network
from moe4.model.experts import set_capture
from moe4.model.skeleton import build_config

CPU = torch.device("cpu")
KIMI = {
    "model_type": "kimi_k2",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "n_routed_experts": 384,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 1,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 163840,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "quantization_config": {"quant_method": "fp8"},
}


def test_kimi_k2_is_described_without_memory() -> None:
    network = Network(parse_config(KIMI), torch.bfloat16)
    assert network.num_layers == 61
    assert network.experts[0] is None
    experts = network.experts[60]
    assert experts is not None
    assert (experts.num_experts, experts.hidden_size, experts.width) == (384, 7168, 2048)
    assert experts.weight_name(383, "down") == "model.layers.60.mlp.experts.383.down_proj.weight"
    assert experts.weight_shape("down") == (7168, 2048)
    assert experts.weight_shape("up") == (2048, 7168)
    names = network.layer_tensors(60)
    assert names["model.layers.60.mlp.gate.e_score_correction_bias"] == (384,)
    assert not any(".experts." in name for name in names)


def test_a_config_is_not_written_to() -> None:
    config = reference_config()
    before = json.dumps(config)
    build_config(parse_config(config))
    assert json.dumps(config) == before


def test_a_layer_alone_is_transformers_layer_less_its_experts() -> None:
    config = reference_config(num_hidden_layers=2, n_routed_experts=8)
    state = random_state(config)
    network = Network(parse_config(config), torch.float32)
    layer = network.build_layer(1, state.__getitem__, CPU)
    assert layer.mlp.gate.e_score_correction_bias.dtype == torch.float32
    experts = network.experts_module(layer, 1)
    assert all(parameter.is_meta for parameter in experts.parameters())
    calls = []
    set_capture(experts, lambda *arguments: calls.append(arguments))

    values = {key: value for key, value in config.items() if key != "model_type"}
    whole = DeepseekV3DecoderLayer(DeepseekV3Config(**values, attn_implementation="sdpa"), 1).float()
    local = {name.removeprefix("model.layers.1."): tensor.float() for name, tensor in state.items()}
    whole.load_state_dict({name: t for name, t in local.items() if name in whole.state_dict()}, strict=False)
    torch.nn.init.zeros_(whole.mlp.experts.gate_up_proj)
    torch.nn.init.zeros_(whole.mlp.experts.down_proj)
    states = torch.randn(2, 11, 256)
    positions = torch.arange(11)[None]
    ((_, named),) = network.calls(2, 11, CPU)[1:]
    rotary = named["position_embeddings"]
    with torch.inference_mode():
        found = layer(states, **named)
        expected = whole(states, attention_mask=None, position_ids=positions, position_embeddings=rotary)
    torch.testing.assert_close(found, expected)
    ((inputs, ids, gates),) = calls
    assert inputs.shape == (22, 256)
    assert ids.shape == gates.shape == (22, 4)


def test_a_wrong_shape_is_named() -> None:
    config = reference_config(num_hidden_layers=2, n_routed_experts=8)
    state = random_state(config)
    name = "model.layers.1.self_attn.o_proj.weight"
    state[name] = state[name][:5]
    with pytest.raises(TensorError, match=r"o_proj\.weight must have shape \[256, 512\], found \[5, 512\]"):
        Network(parse_config(config), torch.bfloat16).build_layer(1, state.__getitem__, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt9"}, "model_type 'gpt9' is not supported; moe4 supports afmoe, deepseek_v2, "),
        ({"model_type": "kimi_k25"}, "the config of this kimi_k25 model has no text_config"),
        ({"model_type": "kimi_k25", "text_config": {"model_type": "gpt9"}}, "model_type 'gpt9' is not"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_act": "none"}, 'hidden_act must be "silu", found "none"'),
        ({"hidden_size": "wide"}, 'hidden_size must be a whole number, found "wide"'),
        ({"first_k_dense_replace": 99}, "no layer with routed experts"),
    ],
)
def test_refuses_with_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        Network(parse_config(reference_config(**changes)), torch.bfloat16)
    assert "\n" not in str(caught.value)


def test_no_code_of_the_checkpoints_is_run(tmp_path: Path) -> None:
    (tmp_path / "configuration_deepseek.py").write_text("raise SystemExit('ran')")
    config = {
        **reference_config(),
        "auto_map": {"AutoConfig": "configuration_deepseek.X"},
        "name_or_path": str(tmp_path),
    }
    assert Network(parse_config(config), torch.bfloat16).num_layers == config["num_hidden_layers"]


def test_layers_that_attend_as_an_earlier_one_chose_are_refused() -> None:
    from family_models import make_config

    config = make_config("glm_moe_dsa").to_dict()
    config["indexer_types"] = ["full", "shared", "shared"]
    with pytest.raises(UnsupportedModelError, match="indexer_types has shared"):
        Network(parse_config(config), torch.float32)
