"""Memory."""

from typing import Any

from moe4.calibration.activations import BATCH_TOKENS

BATCH_BYTES = 512 << 20


def batch_tokens(config: Any) -> int:
    """Return how many tokens run through a layer at once."""
    return max(1, min(BATCH_TOKENS, BATCH_BYTES // token_bytes(config)))


def token_bytes(config: Any) -> int:
    """Return the bytes that one token of a batch needs inside a decoder layer, at most."""
    hidden = int(config.hidden_size)
    heads = int(config.num_attention_heads)
    nope = int(getattr(config, "qk_nope_head_dim", 0) or 0)
    rope = int(getattr(config, "qk_rope_head_dim", 0) or 0)
    head = nope + rope or int(getattr(config, "head_dim", None) or hidden // heads)
    inner = max(int(getattr(config, "intermediate_size", 0) or 0), hidden)
    # Queries, keys, values and output of attention, some of them twice while heads are put in order; the
    # states with their float32 norms; gate, up and their product.
    return 2 * (8 * heads * head + 3 * inner) + 16 * hidden
