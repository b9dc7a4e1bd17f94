"""How many experts a GPU solves together."""

from moe4.model.outline import ExpertShape
from moe4.quantize.transfer.ranks import Ranks

BATCH_BYTES = 8 << 30  # of Hessians and weights in float32, three times each
MOST_EXPERTS = 8


def batch_size(shape: ExpertShape) -> int:
    """Return how many experts are solved together; depends on nothing but their shape."""
    hidden, width = shape.hidden_size, shape.width
    each = 3 * 4 * (max(hidden, width) ** 2 + len(shape.first_parts) * hidden * width)
    return max(1, min(MOST_EXPERTS, BATCH_BYTES // each))


def experts_in_a_row(shape: ExpertShape, ranks: Ranks) -> int:
    """Return how many experts a rank takes at a time: a batch, or fewer so that every rank has some."""
    return max(1, min(batch_size(shape), shape.num_experts // ranks.size))
