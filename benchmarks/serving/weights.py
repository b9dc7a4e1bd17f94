"""What a step of decoding must read, and what reading a prompt must multiply."""

import math
from typing import Any

from moe4.config import parse_config
from moe4.model.inventory import list_tensors


def step_bytes(config: dict[str, Any], batch: int, rest: float = 2.0) -> dict[str, float]:
    """Return the bytes of weights that a step over `batch` tokens reads, by part, if they choose experts
    evenly.

    rest: bytes of a weight that is neither a routed expert's nor float32.
    """
    found = {"experts": 0.0, "rest": 0.0}
    for tensors in list_tensors(parse_config(config).family):
        if "embed_tokens" in tensors.name:
            continue
        size = math.prod(tensors.shape)
        if tensors.is_routed_expert:
            found["experts"] += chosen_experts(config, tensors.copies, batch) * expert_bytes(config) * size
        else:
            found["rest"] += tensors.copies * size * (4.0 if tensors.float32 else rest)
    return found


def chosen_experts(config: dict[str, Any], experts: int, batch: int) -> float:
    """Return how many different experts of a layer `batch` tokens are expected to choose."""
    return experts * (1 - (1 - config["num_experts_per_tok"] / experts) ** batch)


def expert_bytes(config: dict[str, Any]) -> float:
    """Return the bytes of a routed expert's weight, scales included."""
    quantization = config.get("quantization_config")
    if not quantization:
        return 2.0
    return 0.5 + 2 / quantization["config_groups"]["group_0"]["weights"]["group_size"]


def cache_bytes(config: dict[str, Any], batch: int, tokens: float) -> float:
    """Return the bytes of the cache that a step reads with conversations of `tokens` tokens."""
    return batch * tokens * parse_config(config).text.kv_bytes_per_token


def token_operations(config: dict[str, Any]) -> float:
    """Return the operations that reading one token of a prompt takes, attention over the others left out."""
    total = 0.0
    for tensors in list_tensors(parse_config(config).family):
        if len(tensors.shape) != 2 or "embed_tokens" in tensors.name or "lm_head" in tensors.name:
            continue  # only a prompt's last token goes through the head
        copies = config["num_experts_per_tok"] if tensors.is_routed_expert else tensors.copies
        total += 2.0 * copies * math.prod(tensors.shape)
    return total
