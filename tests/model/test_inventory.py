"""A model's tensors from its config alone, held to transformers' own modules and to known sizes."""

import json
import math
from typing import Any

import pytest
import torch
from model_fixtures import REFERENCE_MODEL, reference_config
from shared_data import shared_path

from moe4.checkpoint.header import read_shard
from moe4.config import FAMILIES, parse_config
from moe4.errors import UnsupportedModelError
from moe4.model.architecture import Network
from moe4.model.inventory import LAYOUTS, list_tensors
from moe4.model.names import PARTS
from moe4.model.outline import SketchedNetwork
from moe4.quantize.planning.memory_bound import token_bytes

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 128,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "mlp_only_layers": [0],
    "decoder_sparse_step": 1,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "q_lora_rank": 24,
    "pad_token_id": None,
}


LATENT = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


def families() -> list[tuple[str, dict[str, Any]]]:
    variants: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in sorted(FAMILIES)]
    variants += [("deepseek_v2", {"q_lora_rank": None})]
    variants += [("glm4_moe", {"use_qk_norm": True, "attention_bias": True})]
    variants += [("dots1", {"attention_bias": True})]
    return variants


@pytest.mark.parametrize(("model_type", "changes"), families())
def test_tensors_are_those_of_transformers(model_type: str, changes: dict[str, Any]) -> None:
    config = {**SMALL, "model_type": model_type, **changes}
    if model_type in ("deepseek_v2", "deepseek_v3", "kimi_k2"):
        config = {**config, "num_key_value_heads": 4, "head_dim": 8}
    else:
        config = {key: value for key, value in config.items() if key not in LATENT}
    if model_type in ("deepseek_v3", "kimi_k2"):
        config = {**config, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    if model_type == "qwen3_moe":
        config.pop("shared_expert_intermediate_size")
    if model_type == "olmoe":  # it names its experts' width so, has no head_dim and no dense layer
        config = {**config, "intermediate_size": 32, "first_k_dense_replace": 0}
        for key in ("moe_intermediate_size", "head_dim"):
            config.pop(key)
    if model_type == "mixtral":
        config = {**config, "intermediate_size": 32, "num_local_experts": 4, "first_k_dense_replace": 0}
        config.pop("moe_intermediate_size")
    if model_type == "qwen2_moe":
        config.pop("head_dim")
    parsed = parse_config(config)
    network = Network(parsed, torch.bfloat16)
    expected = {}
    for layer in range(network.num_layers):
        expected.update(network.layer_tensors(layer))
        experts = network.experts[layer]
        for part in PARTS if experts else ():
            assert experts is not None
            name = experts.weight_name(0, part).replace("experts.0.", "experts.{expert}.")
            expected[name] = experts.weight_shape(part)
    listed = list_tensors(parsed.family)
    found = {entry.name: entry.shape for entry in listed if entry.name.startswith("model.layers.")}
    assert found == expected
    assert all(entry.copies == (4 if entry.is_routed_expert else 1) for entry in listed)
    sketched = SketchedNetwork(parsed, item_bytes=2)
    assert sketched.experts == network.experts
    assert (sketched.names, sketched.item_bytes) == (network.names, network.item_bytes)
    assert sketched.num_layers == network.num_layers
    for layer in range(network.num_layers):
        assert sketched.layer_tensors(layer) == network.layer_tensors(layer)
        assert sketched.module_names(layer) == network.module_names(layer)
    for name in ("embedding_name", "head_name", "ties_head"):
        assert getattr(sketched, name) == getattr(network, name)
    assert token_bytes(sketched) == token_bytes(network)


def test_every_streamed_family_is_known() -> None:
    assert FAMILIES.keys() == LAYOUTS.keys()


def test_kimi_k2_holds_a_trillion_parameters() -> None:
    document = json.loads(shared_path("configs", "kimi-k2-instruct", "config.json").read_text())
    config = parse_config(document).family
    counts = {True: 0, False: 0}
    for entry in list_tensors(config):
        counts[entry.is_routed_expert] += math.prod(entry.shape) * entry.copies
    assert counts[True] == 60 * 384 * 3 * 7168 * 2048
    assert 1.025e12 < sum(counts.values()) < 1.028e12
    assert config.kv_bytes_per_token == 70_272


def test_the_reference_model_holds_what_its_files_hold() -> None:
    stored = {}
    for shard in sorted(REFERENCE_MODEL.glob("*.safetensors")):
        stored.update({name: tensor.spec for name, tensor in read_shard(shard).tensors.items()})
    found: dict[str, tuple[int, ...]] = {}
    for entry in list_tensors(parse_config(reference_config()).family):
        for copy in range(entry.copies):
            found[entry.name.replace("{expert}", str(copy))] = entry.shape
    assert found == {name: spec.shape for name, spec in stored.items()}


def test_an_unknown_family_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'gpt9' is not supported; moe4 supports .*kimi_k2"):
        _ = parse_config({"model_type": "gpt9"}).family
    with pytest.raises(UnsupportedModelError, match="hidden_size is missing"):
        parse_config({"model_type": "kimi_k2"})
