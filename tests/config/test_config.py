"""Every field of every family's schema: wrong types, values out of range, relations that do not hold.

The cases are made from the schemas themselves, so a new field is tested as soon as it is there.
"""

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import annotated_types
import pytest
from configs import BY_FAMILY, KIMI_K25, PUBLISHED, W4A16
from pydantic import BaseModel

from moe4.config import FAMILIES, TEXT_MODELS, parse_config, parse_tokenizer_config
from moe4.errors import CheckpointError, UnsupportedModelError
from moe4.escape import visible
from moe4.schema import Only

SAMPLES: dict[type, tuple[Any, ...]] = {
    str: ("8", ""),
    bool: (True, False),
    int: (3,),
    float: (1.5, math.nan, math.inf),
    list: ([], [1]),
    dict: ({"a": 1},),
    type(None): (None,),
}
Path = tuple[str, ...]


def parts(annotation: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield (type, metadata) of each member of a field's type."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from parts(member)
    elif origin is typing.Annotated:
        inner, *metadata = typing.get_args(annotation)
        for kind, found in parts(inner):
            yield kind, [*found, *metadata]
    else:
        yield annotation, []


def bounds(metadata: list[Any]) -> Iterator[Any]:
    """Yield the marks that say what a value may be, also those inside a Field."""
    for mark in metadata:
        yield from bounds(mark.metadata) if hasattr(mark, "metadata") else [mark]


def accepted_types(members: list[tuple[Any, list[Any]]]) -> set[type]:
    found: set[type] = set()
    for kind, _ in members:
        origin = typing.get_origin(kind) or kind
        if origin is None:
            origin = type(None)
        found.add(dict if isinstance(origin, type) and issubclass(origin, BaseModel) else origin)
    return found | ({int} if float in found else set())


def field_faults(model: type[BaseModel], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (where, value) of values that no file may have there."""
    for name, field in model.model_fields.items():
        where = (*path, name)
        members = list(parts(field.annotation))
        marks = [mark for _, metadata in members for mark in bounds(metadata)] + list(bounds(field.metadata))
        allowed = accepted_types(members)
        for kind, values in SAMPLES.items():
            for value in values:
                if kind not in allowed or (isinstance(value, float) and not math.isfinite(value)):
                    yield where, value
        only = [mark for mark in marks if isinstance(mark, Only)]
        for mark in marks:
            if isinstance(mark, annotated_types.Ge):
                yield where, mark.ge - 1
            elif isinstance(mark, annotated_types.Gt):
                yield where, mark.gt
            elif isinstance(mark, annotated_types.Le):
                yield where, mark.le + 1
                yield where, mark.le * 2**40
        for mark in only:
            for kind in allowed:
                yield from ((where, value) for value in SAMPLES[kind] if value not in mark.allowed)
        for kind, _ in members:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from field_faults(kind, where)


FAULTS: dict[tuple[str, str], list[tuple[Path, Any]]] = {}
for _family, _schema in FAMILIES.items():
    for _where, _value in field_faults(_schema):
        FAULTS.setdefault((_family, _where[0]), []).append((_where, _value))


def changed(family: str, where: Path, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(BY_FAMILY[family])
    inner: Any = document
    for name in where[:-1]:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    inner[where[-1]] = value
    return document


@pytest.mark.parametrize(("family", "field"), [key for key in FAULTS if key[1] != "model_type"])
def test_a_wrong_field_is_named_in_one_line(family: str, field: str) -> None:
    for where, value in FAULTS[family, field]:
        with pytest.raises(UnsupportedModelError) as caught:
            parse_config(changed(family, where, value), "somewhere/config.json")
        line = str(caught.value)
        assert line.startswith("somewhere/config.json: ")
        assert ".".join(where) in line
        assert "\n" not in line and "pydantic" not in line.lower()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_has_faults(family: str) -> None:
    """The test above would not fail if none were made."""
    assert {field for name, field in FAULTS if name == family} == set(FAMILIES[family].model_fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_taken(name: str) -> None:
    config = parse_config(PUBLISHED[name])
    family = config.family
    assert family.num_routed_experts >= 8
    assert any(family.expert_layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_required_field_that_is_missing_is_named(family: str) -> None:
    for name, field in FAMILIES[family].model_fields.items():
        if field.is_required() and name != "model_type":
            document = {key: value for key, value in BY_FAMILY[family].items() if key != name}
            with pytest.raises(UnsupportedModelError, match=f"{name} is missing"):
                parse_config(document)


RELATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v3", {"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta is null"),
    (
        "deepseek_v3",
        {"num_experts_per_tok": 257},
        "num_experts_per_tok is 257, more than the 256 of n_routed_experts",
    ),
    (
        "qwen3_moe",
        {"num_experts_per_tok": 129},
        "num_experts_per_tok is 129, more than the 128 of num_experts",
    ),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, more than the 8 of num_local_experts"),
    ("deepseek_v3", {"num_experts_per_tok": 129}, "more than the 128 experts in 4 of 8 groups"),
    ("deepseek_v3", {"n_group": 7}, "n_group is 7, which does not divide the 256 of n_routed_experts"),
    ("deepseek_v3", {"n_group": 256, "topk_group": 64}, "groups of fewer than two"),
    ("deepseek_v3", {"topk_group": 9}, "topk_group is 9, more than the 8 of n_group"),
    ("deepseek_v2", {"topk_method": "greedy"}, "topk_method is greedy: vLLM would leave groups out"),
    ("deepseek_v2", {"hidden_size": 5121}, "hidden_size is 5121, not a multiple of the 128"),
    (
        "deepseek_v3",
        {"first_k_dense_replace": 61},
        "first_k_dense_replace is 61 and num_hidden_layers is 61: the model has no layer",
    ),
    ("qwen3_moe", {"mlp_only_layers": [48]}, "mlp_only_layers names 48, past the 48 of num_hidden_layers"),
    ("qwen3_moe", {"decoder_sparse_step": 49}, "the model has no layer with routed experts"),
    ("qwen2_moe", {"mlp_only_layers": list(range(24))}, "the model has no layer with routed experts"),
    ("deepseek_v3", {"num_key_value_heads": 8}, "num_key_value_heads is 8; with MLA it must be the 128"),
    (
        "kimi_k2",
        {"num_key_value_heads": None, "head_dim": 128},
        "head_dim is 128; with MLA it must be absent or",
    ),
    ("deepseek_v3", {"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; it must be even"),
    ("glm4_moe", {"num_key_value_heads": 7}, "num_attention_heads is 96, not a multiple of the 7"),
    (
        "mixtral",
        {"num_attention_heads": 24},
        "hidden_size is 4096, not a multiple of the 24 of num_attention_heads",
    ),
    ("qwen3_moe", {"head_dim": 127}, "must be even"),
    ("olmoe", {"head_dim": 64}, "head_dim is 64; vLLM takes the 128"),
    ("qwen2_moe", {"head_dim": 64}, "head_dim is 64; vLLM takes the 128"),
    ("glm4_moe", {"partial_rotary_factor": 0.055}, "partial_rotary_factor is 0.055, an odd part"),
    ("glm4_moe", {"pad_token_id": 151552}, "pad_token_id is 151552, not below the 151552 of vocab_size"),
    ("qwen3_moe", {"eos_token_id": [1, 151936]}, "eos_token_id names 151936, not below the 151936"),
    ("mixtral", {"eos_token_id": [-1]}, "eos_token_id must be a token id, a list of them or null, found"),
    ("mixtral", {"dtype": "bf16"}, 'dtype must be "bfloat16" or "float16"'),
    ("olmoe", {"torch_dtype": "float23"}, 'torch_dtype must be .*, found "float23"'),
    ("deepseek_v3", {"torch_dtype": 16}, "torch_dtype must be a string, found 16"),
    ("deepseek_v3", {"architectures": ["LlamaForCausalLM"]}, "vLLM must be told DeepseekV3ForCausalLM"),
    ("deepseek_v3", {"num_local_experts": 8}, "num_local_experts is 8, but n_routed_experts is 256"),
    ("deepseek_v3", {"n_routed_experts": None, "num_experts": 8}, "n_routed_experts is missing"),
    ("mixtral", {"sliding_window": 4096}, "only full attention is supported; sliding_window is 4096"),
    ("kimi_k2", {"sliding_window": 4096}, "only full attention is supported"),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 9}, "only full attention is supported"),
    ("dots1", {"sliding_window": 4096, "max_window_layers": 61}, "only full attention is supported"),
    ("dots1", {"layer_types": ["full_attention"]}, "layer_types has 1 entries, num_hidden_layers is 62"),
    (
        "dots1",
        {"layer_types": ["full_attention"] * 61 + ["sliding_attention"]},
        "layer_types has sliding_attention",
    ),
    (
        "deepseek_v3",
        {"rope_scaling": {"type": "linear", "factor": 4}},
        'rope_type is "linear"; expected one of',
    ),
    ("qwen3_moe", {"rope_scaling": {"rope_type": "mrope"}}, 'rope_type is "mrope"'),
    ("qwen3_moe", {"rope_scaling": {"type": "yarn"}}, "rope_scaling: yarn needs a factor"),
    (
        "qwen3_moe",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_slow": 33}},
        "rope_scaling: beta_fast is 32, less than the 33 of beta_slow",
    ),
    (
        "qwen3_moe",
        {"rope_scaling": {"type": "llama3", "factor": 4.0, "low_freq_factor": 1.0}},
        "rope_scaling: llama3 needs low_freq_factor, high_freq_factor and original_max_position_embeddings",
    ),
    (
        "qwen3_moe",
        {
            "rope_scaling": {
                "type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 2.0,
                "original_max_position_embeddings": 4096,
            }
        },
        "rope_scaling: high_freq_factor is 2, not more than the 2 of low_freq_factor",
    ),
    ("qwen3_moe", {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2}}, "but type is"),
    ("qwen3_moe", {"rope_parameters": {"rope_theta": 3.0}}, "rope_theta is 1e.06, but 3 beside the scaling"),
    (
        "qwen3_moe",
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor is 0.5; it must be 1",
    ),
    (
        "qwen3_moe",
        {"rope_scaling": {"type": "yarn", "factor": 2}, "rope_parameters": {"type": "yarn", "factor": 4}},
        "rope_scaling and rope_parameters differ",
    ),
]


@pytest.mark.parametrize(("family", "changes", "message"), RELATIONS)
def test_a_relation_that_does_not_hold_is_named(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        parse_config({**BY_FAMILY[family], **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_factor": 1.0}, "attention_factor must be absent"),
        ({"truncate": False}, "truncate must be true or absent"),
        ({"mscale": None}, "mscale and mscale_all_dim must both be given"),
        ({"mscale": 0.7, "mscale_all_dim": None}, "mscale and mscale_all_dim must both be given"),
        ({"mscale": 0, "mscale_all_dim": 0}, "mscale and mscale_all_dim must both be given"),
    ],
)
def test_yarn_that_vllm_computes_otherwise_is_refused(change: dict[str, Any], message: str) -> None:
    rope = {**BY_FAMILY["deepseek_v3"]["rope_scaling"], **change}
    with pytest.raises(UnsupportedModelError, match=message):
        parse_config({**BY_FAMILY["deepseek_v3"], "rope_scaling": rope})


@pytest.mark.parametrize("name", ["scoring_func", "topk_method"])
def test_what_vllm_needs_may_be_absent_for_sizing_alone(name: str) -> None:
    config = parse_config({key: value for key, value in BY_FAMILY["kimi_k2"].items() if key != name})
    assert config.family.num_routed_experts == 384
    with pytest.raises(UnsupportedModelError, match=f"{name} is missing: vLLM would"):
        config.require_complete()
    for family in FAMILIES:
        parse_config(BY_FAMILY[family]).require_complete()


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING["deepseek_v3" if family == "kimi_k2" else family]
    defaults = {field.name: field.default for field in dataclasses.fields(theirs)}
    compared = 0
    for name, field in FAMILIES[family].model_fields.items():
        if not field.is_required() and field.default is not None and name in defaults:
            assert field.default == defaults[name], name
            compared += 1
    assert compared >= 5


def test_several_faults_are_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse_config(
            {**BY_FAMILY["kimi_k2"], "hidden_size": "7168", "num_hidden_layers": 0, "vocab_size": True}
        )
    assert str(caught.value) == (
        "config.json: vocab_size must be a whole number, found true; "
        'hidden_size must be a whole number, found "7168"; num_hidden_layers must be at least 1, found 0'
    )


@pytest.mark.parametrize("value", [[], "x", 3, [W4A16]])
def test_a_part_of_another_kind_is_named(value: Any) -> None:
    for name in ("quantization_config", "rope_scaling"):
        with pytest.raises(UnsupportedModelError, match=f"{name} must be an object"):
            parse_config({**BY_FAMILY["kimi_k2"], name: value})
    with pytest.raises(UnsupportedModelError, match="text_config must be an object"):
        parse_config({**KIMI_K25, "text_config": value})


def test_a_text_model_inside_is_checked_and_named() -> None:
    text = {**KIMI_K25["text_config"], "n_group": 5}
    with pytest.raises(UnsupportedModelError, match=r"^config.json: text_config: n_group is 5, which"):
        parse_config({**KIMI_K25, "text_config": text})
    config = parse_config(
        {**KIMI_K25, "text_config": {**KIMI_K25["text_config"], "quantization_config": W4A16}}
    )
    assert config.text_prefix == TEXT_MODELS["kimi_k25"]
    assert config.quantization is not None and config.quantization.w4a16_group_size == 32


def test_another_family_is_read_and_not_taken_for_ours() -> None:
    config = parse_config(
        {"model_type": "llama", "num_attention_heads": 8, "num_experts": 0, "head_dim": None}
    )
    assert config.text.num_kv_heads == 8
    with pytest.raises(UnsupportedModelError, match="model_type 'llama' is not supported"):
        _ = config.family
    with pytest.raises(
        UnsupportedModelError, match="num_attention_heads must be a whole number, found \\[8\\]"
    ):
        parse_config({"model_type": "llama", "num_attention_heads": [8]})


def test_an_empty_quantization_config_says_nothing() -> None:
    assert parse_config({**BY_FAMILY["kimi_k2"], "quantization_config": {}}).quantization is None
    text = {**KIMI_K25["text_config"], "quantization_config": W4A16}
    config = parse_config({**KIMI_K25, "quantization_config": {}, "text_config": text})
    assert config.quantization is not None and config.quantization.is_packed


def test_a_tokenizer_config_is_read_by_its_types() -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    found = parse_tokenizer_config(
        {"auto_map": {"AutoTokenizer": ["x.Y", None]}, "chat_template": named}, "t.json"
    )
    assert found.is_code and found.chat_template == "a\nb"
    assert parse_tokenizer_config({"auto_map": ["x.Y", None]}, "t.json").is_code
    assert not parse_tokenizer_config({"auto_map": {"AutoTokenizer": None}}, "t.json").is_code
    assert not parse_tokenizer_config({"auto_map": None, "chat_template": None}, "t.json").is_code
    for name, value in (
        ("auto_map", 3),
        ("auto_map", "AutoTokenizer"),
        ("chat_template", 3),
        ("chat_template", [3]),
    ):
        with pytest.raises(CheckpointError, match=f"^t.json: {name} must be"):
            parse_tokenizer_config({name: value}, "t.json")


@pytest.mark.parametrize("value", ["a\nb", "\x1b[31m", "\ud800", "é" * 200])
@pytest.mark.parametrize("where", [("hidden_act",), ("rope_scaling", "rope_type"), ("hidden_size",)])
def test_what_is_shown_of_a_value_stays_one_printable_line(where: Path, value: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse_config(changed("qwen3_moe", where, value))
    line = str(caught.value)
    assert line == visible(line) and len(line) < 400


ODD_VALUES: tuple[Any, ...] = (None, True, -1, 0, 1, 10**9, 0.5, "x", [], ["x"], [0], {}, {"a": 1})


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"kimi_k2"}))
def test_what_is_taken_transformers_builds(family: str) -> None:
    """So `fit` and `serve`, which never ask transformers, take no config that `plan` refuses."""
    import torch
    from transformers import CONFIG_MAPPING

    from moe4.model.architecture import Network

    base = {**BY_FAMILY[family], "num_hidden_layers": 2}
    base.update({"first_k_dense_replace": 1} if "first_k_dense_replace" in base else {})
    theirs = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family])}
    fields = theirs | set(base) | set(FAMILIES[family].model_fields) | {"num_labels", "default_theta"}
    wrong, num_built = [], 0
    for field in sorted(fields - {"model_type"}):
        for value in ODD_VALUES:
            try:
                config = parse_config({**copy.deepcopy(base), field: value})
                config.require_complete()
            except UnsupportedModelError:
                continue
            try:
                Network(config, torch.bfloat16)
            except UnsupportedModelError as error:
                wrong.append(f"{field} {value}: {error}")
            num_built += 1
    assert not wrong, "\n".join(wrong)
    assert num_built > len(fields)


def test_a_key_that_would_replace_transformers_code_is_refused() -> None:
    from transformers import PreTrainedConfig

    fields = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    # Properties that can be set, and what some published configs hold to no effect.
    harmless = {
        *("keys_to_ignore_at_inference", "model_type", "name_or_path", "num_labels", "output_attentions"),
        *("per_layer_config", "rope_scaling", "torch_dtype"),
    }
    names = {name for name in dir(PreTrainedConfig) if not name.startswith("_")} - fields - harmless
    assert len(names) > 20
    for name in names:
        with pytest.raises(UnsupportedModelError, match=f"^config.json: {name} is not a field of a model"):
            parse_config({**BY_FAMILY["qwen3_moe"], name: None})
