"""From config.json's object to a typed value."""

from dataclasses import dataclass

from moe4.arguments import argument
from moe4.config.families import BY_TRANSFORMERS, FAMILIES
from moe4.config.parts import Dtype, Quantization
from moe4.config.text import Family, TextModel
from moe4.errors import UnsupportedModelError
from moe4.schema import Foreign, parse
from moe4.strict_json import JsonObject

# Families whose text model is one of several: model_type -> prefix of the text model's tensors.
TEXT_MODELS = {"kimi_k25": "language_model."}


# What transformers' class of every config has beside fields: a key of this name would replace it.
OF_THE_CLASS = frozenset(
    [
        "attribute_map",
        "base_config_key",
        "base_model_ep_plan",
        "base_model_fsdp_plan",
        "base_model_pp_plan",
        "base_model_tp_plan",
        "default_rope_type",
        "default_theta",
        "has_no_defaults_at_init",
        "ignore_keys_at_rope_validation",
        "sub_configs",
        "allow_global_per_layer_attribute_access",
        "is_heterogeneous",
        "per_layer_attributes",
        "serialize_explicit_per_layer_config",
        "use_return_dict",
        "convert_rope_params_to_dict",
        "dict_dtype_to_str",
        "from_dict",
        "from_json_file",
        "from_pretrained",
        "get_config_dict",
        "get_mtp_config",
        "get_text_config",
        "is_custom_code",
        "is_remote_code",
        "nested_rope_parameter_keys",
        "push_to_hub",
        "register_for_auto_class",
        "save_pretrained",
        "standardize_rope_params",
        "to_dict",
        "to_diff_dict",
        "to_json_file",
        "to_json_string",
        "update",
        "update_from_string",
        "validate",
        "validate_architecture",
        "validate_layer_type",
        "validate_output_attentions",
        "validate_rope",
        "validate_token_ids",
    ]
)


def supported_types() -> list[str]:
    """Return every model_type that is quantized without being asked for by name."""
    return sorted({*FAMILIES, *TEXT_MODELS, *BY_TRANSFORMERS})


class _Document(Foreign):
    """The whole file: what is said beside the text model."""

    model_type: str | None = None
    architectures: list[str] | None = None
    text_config: JsonObject | None = None
    quantization_config: Quantization | None = None


class _Whole(Foreign):
    """What a file of several models says of all of them."""

    dtype: Dtype = None
    torch_dtype: Dtype = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A checkpoint's config.json.

    where: the file, for messages. document: its object as it is, for transformers and a release's own file.
    text: the language model. text_prefix: of its tensors' names, where it is one of several models.
    quantization: of the whole file or else of its text model; None for plain weights.
    """

    where: str
    document: JsonObject
    model_type: str | None
    architectures: list[str] | None
    text: TextModel
    text_document: JsonObject
    text_prefix: str
    quantization: Quantization | None
    family_as_is: bool = False

    @property
    def is_checked(self) -> bool:
        """Whether the language model's config is checked in full here, not by transformers."""
        return isinstance(self.text, Family)

    @property
    def is_text_alone(self) -> bool:
        """Whether the network is built of the language model's part of the file alone."""
        return self.is_checked or self.model_type in TEXT_MODELS

    @property
    def is_tried(self) -> bool:
        """Whether the family is not listed, and is tried because the user said so."""
        return self.family_as_is and not self.is_checked and self.model_type not in BY_TRANSFORMERS

    @property
    def network_type(self) -> str:
        """What transformers is asked for: a model_type. Raises UnsupportedModelError for an unknown one."""
        if self.is_checked:
            return self.family.model_type
        found = self.text.model_type if self.is_text_alone else self.model_type
        if found not in BY_TRANSFORMERS and not (self.family_as_is and found):
            raise UnsupportedModelError(
                f"{self.where}: model_type {found!r:.60} is not supported; moe4 supports "
                f"{', '.join(supported_types())}; {argument('family_as_is', True)} tries another one"
            )
        return str(found)

    @property
    def family(self) -> Family:
        """The language model, of a family whose config is checked in full here.

        Raises UnsupportedModelError for another.
        """
        if not isinstance(self.text, Family):
            raise UnsupportedModelError(
                f"{self.where}: moe4 does not know from the config alone what a {self.network_type} model "
                "holds; give the whole checkpoint"
            )
        return self.text

    def require_complete(self) -> None:
        """Refuse a config that lacks what decides the model's answers. Raises UnsupportedModelError."""
        missing = list(self.text.missing()) if isinstance(self.text, Family) else []
        if missing:
            raise UnsupportedModelError(f"{self.where}: {'; '.join(missing)}")


def parse_config(
    document: JsonObject, where: object = "config.json", *, family_as_is: bool = False
) -> ModelConfig:
    """Return config.json's object as a typed value; `where` names the file in messages.

    A config of a family that moe4 quantizes is checked in full, one of another only for what serving reads.
    Raises UnsupportedModelError with one line that names each field.
    """
    outer = parse(_Document, document, where, UnsupportedModelError)
    text, prefix = document, ""
    if outer.model_type in TEXT_MODELS:
        parse(_Whole, document, where, UnsupportedModelError)
        if outer.text_config is None:
            raise UnsupportedModelError(
                f"{where}: the config of this {outer.model_type} model has no text_config"
            )
        text, prefix, where_text = outer.text_config, TEXT_MODELS[outer.model_type], f"{where}: text_config"
    elif outer.text_config is not None and "num_hidden_layers" not in document:
        text, where_text = outer.text_config, f"{where}: text_config"
    else:
        where_text = str(where)
    model_type = text.get("model_type")
    schema = FAMILIES.get(model_type, TextModel) if isinstance(model_type, str) else TextModel
    parsed = parse(schema, text, where_text, UnsupportedModelError)
    builds = isinstance(parsed, Family) or outer.model_type in BY_TRANSFORMERS
    replaced = sorted(OF_THE_CLASS & {*text, *document}) if builds else []
    if replaced:
        raise UnsupportedModelError(
            f"{where_text}: {replaced[0]} is not a field of a model: it would replace a part of "
            "transformers' code; remove it"
        )
    quantized = [  # an empty object says nothing
        (outer.quantization_config, document.get("quantization_config")),
        (parsed.quantization_config, text.get("quantization_config")),
    ]
    return ModelConfig(
        where=str(where),
        document=document,
        model_type=outer.model_type,
        architectures=outer.architectures,
        text=parsed,
        text_document=text,
        text_prefix=prefix,
        quantization=next((part for part, given in quantized if given), None),
        family_as_is=family_as_is,
    )
