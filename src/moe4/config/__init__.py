"""A model's config.json as a typed value, read once."""

from moe4.config.families import FAMILIES
from moe4.config.read import TEXT_MODELS, ModelConfig, parse_config
from moe4.config.text import Family, LatentFamily, TextModel

__all__ = ["FAMILIES", "TEXT_MODELS", "Family", "LatentFamily", "ModelConfig", "TextModel", "parse_config"]
