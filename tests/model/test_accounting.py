"""Every tensor of a checkpoint is needed, known to lie beside the model, or named as one without a place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moe4.checkpoint.header import TensorSpec
from moe4.config import parse_config
from moe4.errors import UnsupportedModelError
from moe4.model.accounting import Accounting, Balance, count_patterns, summarize_names
from moe4.model.architecture import Network

K2: dict[str, Any] = {
    "model_type": "kimi_k2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "q_lora_rank": 24,
    "num_nextn_predict_layers": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
QWEN: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
K25 = {"model_type": "kimi_k25", "text_config": K2}

Stored = dict[str, TensorSpec]


def account(config: dict[str, Any]) -> tuple[Accounting, Stored]:
    """Return what a config needs, and a checkpoint that holds it in BF16."""
    parsed = parse_config(config)
    accounting = Accounting(Network(parsed, torch.bfloat16), parsed)
    return accounting, {name: spec(name, shape) for name, shape in accounting.needed.items()}


def spec(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def messages(balance: Balance) -> str:
    return "\n".join(map(str, [*balance.problems, *balance.refuse_unknown()]))


@pytest.mark.parametrize("config", [K2, QWEN, K25, {**QWEN, "tie_word_embeddings": True}])
def test_a_whole_checkpoint_has_no_problems(config: dict[str, Any]) -> None:
    accounting, stored = account(config)
    balance = accounting.check(stored, {})
    assert not messages(balance)
    assert not balance.unusable
    prefix = "language_model." if config is K25 else ""
    assert (f"{prefix}lm_head.weight" in accounting.needed) is not config.get("tie_word_embeddings", False)
    assert accounting.needed[f"{prefix}model.embed_tokens.weight"] == (128, 64)


def rename(old: str, new: str) -> Callable[[Stored], None]:
    return lambda stored: stored.update({new: stored.pop(old)})


def reshape(name: str, *shape: int) -> Callable[[Stored], None]:
    return lambda stored: stored.update({name: spec(name, shape)})


def add(*names: str) -> Callable[[Stored], None]:
    return lambda stored: stored.update({name: spec(name, (1,)) for name in names})


ATTENTION = "model.layers.1.self_attn"
EXPERTS = "model.layers.1.mlp.experts"
BAD: dict[str, tuple[Callable[[Stored], Any], str]] = {
    "no head": (lambda s: s.pop("lm_head.weight"), "has no tensor lm_head.weight"),
    "no norm": (lambda s: s.pop("model.norm.weight"), "has no tensor model.norm.weight"),
    "no gate": (lambda s: s.pop("model.layers.1.mlp.gate.weight"), "has no tensor model.layers.1.mlp.gate"),
    "no correction bias": (
        lambda s: s.pop("model.layers.1.mlp.gate.e_score_correction_bias"),
        "has no tensor model.layers.1.mlp.gate.e_score_correction_bias",
    ),
    "no expert 0": (
        lambda s: [s.pop(f"{EXPERTS}.0.{part}_proj.weight") for part in ("gate", "up", "down")],
        f"has no tensor {EXPERTS}.0.down_proj.weight",
    ),
    "embeddings of another vocabulary": (
        reshape("model.embed_tokens.weight", 192, 64),
        "model.embed_tokens.weight must have shape [128, 64] according to the config, found [192, 64]",
    ),
    "head of another vocabulary": (reshape("lm_head.weight", 192, 64), "lm_head.weight must have shape"),
    "MLA of another rank": (
        reshape(f"{ATTENTION}.kv_b_proj.weight", 128, 32),
        "kv_b_proj.weight must have shape [128, 16] according to the config, found [128, 32]",
    ),
    "a matrix of one dimension": (reshape(f"{EXPERTS}.3.up_proj.weight", 2048), "found [2048]"),
    "a norm in I32": (
        lambda s: s.update({"model.norm.weight": spec("model.norm.weight", (64,), "I32")}),
        "model.norm.weight has the dtype I32; expected BF16, F16, F32, F64 or a quantized form",
    ),
    "an expert in F4": (
        lambda s: s.update({f"{EXPERTS}.0.up_proj.weight": spec("x", (32, 64), "F4")}),
        "up_proj.weight has the dtype F4; expected",
    ),
    "activation scales": (add(f"{ATTENTION}.o_proj.input_scale"), f"{ATTENTION}.o_proj.input_scale"),
    "cache scales": (add(f"{ATTENTION}.k_proj.k_scale"), f"{ATTENTION}.k_proj.k_scale"),
    "scales without FP8": (add(f"{EXPERTS}.0.up_proj.weight_scale_inv"), "0.up_proj.weight_scale_inv"),
    "biases of experts": (
        add(*(f"{EXPERTS}.{number}.up_proj.bias" for number in range(4))),
        "has no place for 4 of the checkpoint's tensors: model.layers.*.mlp.experts.*.up_proj.bias (4); ",
    ),
    "an expert too many": (add(f"{EXPERTS}.4.up_proj.weight"), f"{EXPERTS}.4.up_proj.weight"),
    "a layer too many": (add("model.layers.3.input_layernorm.weight"), "model.layers.3.input_layernorm"),
    "a layer's number with a zero": (add("model.layers.02.norm.weight"), "model.layers.02.norm.weight"),
    "a layer's number in other digits": (add("model.layers.²."), "model.layers.²."),
    "a tower of a model without": (add("vision_tower.a.weight"), "vision_tower.a.weight"),
    "something else": (add("foo"), "no place for 1 of the checkpoint's tensors: foo; allow_extra=True"),
    "another name": (rename("model.norm.weight", "model.final_norm.weight"), "model.final_norm.weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name: str) -> None:
    breaks, message = BAD[name]
    accounting, stored = account(K2)
    breaks(stored)
    found = messages(accounting.check(stored, {}))
    assert message in found
    assert all(found.splitlines())


KNOWN = {
    "model.layers.1.self_attn.rotary_emb.inv_freq": "computed",
    "model.rotary_emb.cos_cached": "computed",
    "model.layers.2.eh_proj.weight": "extra",
    "model.layers.2.mlp.experts.0.up_proj.weight": "extra",
    "model.layers.3.eh_proj.weight": "unknown",
    "model.layers.1.mlp.experts.0.up_proj.weight": "needed",
}


@pytest.mark.parametrize(("name", "kind"), KNOWN.items())
def test_what_may_lie_beside_the_model(name: str, kind: str) -> None:
    accounting, _ = account(K2)
    assert accounting.kind(name) == kind


def test_prediction_layers_are_those_the_config_counts() -> None:
    for config in ({**K2, "num_nextn_predict_layers": 0}, {**K2, "num_nextn_predict_layers": None}, QWEN):
        assert account(config)[0].kind("model.layers.2.eh_proj.weight") == "unknown"


def test_towers_of_a_model_of_several_parts() -> None:
    accounting, _ = account(K25)
    assert accounting.kind("vision_tower.patch_embed.proj.weight") == "extra"
    assert accounting.kind("language_model.model.layers.2.eh_proj.weight") == "extra"
    assert accounting.kind("model.norm.weight") == "unknown"


def test_a_stored_head_that_is_tied_is_known() -> None:
    accounting, _ = account({**QWEN, "tie_word_embeddings": True})
    assert accounting.kind("lm_head.weight") == "extra"


def test_fused_experts_are_refused_with_the_way_out() -> None:
    accounting, stored = account(QWEN)
    for name in [name for name in stored if ".experts." in name]:
        del stored[name]
    add(f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj")(stored)
    with pytest.raises(
        UnsupportedModelError, match=r"experts are fused.*experts\.down_proj.*save_pretrained"
    ):
        accounting.check(stored, {})


def test_a_shard_may_hold_what_the_index_forgot() -> None:
    accounting, stored = account(K2)
    del stored["lm_head.weight"]
    found = messages(accounting.check(stored, {"lm_head.weight": "m.safetensors"}))
    assert found.endswith("requires; m.safetensors holds it, but the index does not name it")


def test_many_names_make_one_line() -> None:
    names = [f"model.layers.{layer}.{leaf}" for layer in range(50) for leaf in "abcdef"]
    assert count_patterns(names) == {f"model.layers.*.{leaf}": 50 for leaf in "abcdef"}
    assert summarize_names(names).endswith("model.layers.*.d (50) and 2 other kinds")
    assert summarize_names(["model.layers.7.a"]) == "model.layers.7.a"
