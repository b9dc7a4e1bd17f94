"""A model's config.json as a typed value, read once; and what is read of its tokenizer's."""

from moe4.config.families import FAMILIES
from moe4.config.read import TEXT_MODELS, ModelConfig, parse_config
from moe4.config.text import Family, LatentFamily, TextModel
from moe4.config.tokenizer import TokenizerConfig, parse_tokenizer_config
from moe4.config.tokens import check_generation_config

__all__ = [
    "FAMILIES",
    "TEXT_MODELS",
    "Family",
    "LatentFamily",
    "ModelConfig",
    "TextModel",
    "TokenizerConfig",
    "check_generation_config",
    "parse_config",
    "parse_tokenizer_config",
]
