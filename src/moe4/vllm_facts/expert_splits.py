"""How vLLM splits routed experts over ranks: which widths divide, which size of groups a model gets.

vLLM 0.26 to 0.33 mixes up the scales of routed experts on NVIDIA GPUs where a rank's part of their inner
width is one group or less (docs/vllm-marlin-scales.md): the answers are wrong, and nothing says so. moe4's
plugin corrects it. This is the only place that knows the rule.
"""

from collections.abc import Collection

from moe4.arguments import argument
from moe4.recipe import GROUP_SIZES

SAFE_GROUPS = 2
"""Groups of an expert's inner width that each rank must hold for a vLLM without moe4's plugin on GPUs."""


def choose_group_size(inputs: Collection[int], expert_width: int) -> int:
    """Return the largest group size that divides all `inputs` and leaves `expert_width` two groups or more.

    inputs: columns of every weight that is quantized. Where no size leaves two groups, the largest that
    divides is returned; where none divides, the largest of all, which is refused later with a weight's name.
    """
    largest_first = sorted(GROUP_SIZES, reverse=True)
    dividing = [size for size in largest_first if all(columns % size == 0 for columns in inputs)]
    safe = [size for size in dividing if expert_width >= SAFE_GROUPS * size]
    return (safe or dividing or largest_first)[0]


def splits_evenly(width: int, group_size: int | None, num_ranks: int) -> bool:
    """Say whether each rank gets an equal part of an inner width, in whole groups if it is quantized."""
    return width % (num_ranks * (group_size or 1)) == 0


def one_group_a_rank(expert_width: int, group_size: int, num_ranks: int = 1) -> str | None:
    """Return what is wrong with experts of one group or less on each rank; None if they have more."""
    if expert_width > num_ranks * group_size:
        return None
    where = (
        f"{expert_width // num_ranks} on each of {num_ranks} ranks" if num_ranks > 1 else str(expert_width)
    )
    amount = "one group" if expert_width == num_ranks * group_size else "less than one group"
    return (
        f"the experts' inner width, {where}, is {amount} of {group_size} codes: "
        "vLLM on GPUs gives wrong answers without moe4's plugin"
    )


def quantizing_advice(expert_width: int, group_size: int) -> str:
    """Return what to choose instead when a release is made."""
    sizes = _smaller_sizes(expert_width, group_size, 1)
    return (
        f"use {argument('group_size')} {sizes}, or serve with moe4's plugin"
        if sizes
        else "serve with moe4's plugin"
    )


def serving_advice(expert_width: int, group_size: int, num_ranks: int = 1) -> str:
    """Return the ways out when a release is to be served by `num_ranks` that split its experts."""
    ways = []
    if num_ranks > 1 and expert_width >= SAFE_GROUPS * group_size:
        fits = range(1, expert_width // (SAFE_GROUPS * group_size) + 1)
        fewer = max(
            size for size in fits if num_ranks % size == 0 and splits_evenly(expert_width, group_size, size)
        )
        ways += [f"tensor parallel {fewer} x pipeline parallel {num_ranks // fewer}", "expert parallelism"]
    sizes = _smaller_sizes(expert_width, group_size, num_ranks)
    if sizes:
        ways.append(f"a release in groups of {sizes}")
    ways.append("an image with moe4's plugin")
    return "use " + (", ".join(ways[:-1]) + " or " + ways[-1] if len(ways) > 1 else ways[0])


def _smaller_sizes(expert_width: int, group_size: int, num_ranks: int) -> str:
    """Return the group sizes below `group_size` that leave each of the ranks two whole groups or more."""
    sizes = [
        str(size)
        for size in sorted(GROUP_SIZES, reverse=True)
        if size < group_size
        and splits_evenly(expert_width, size, num_ranks)
        and expert_width >= SAFE_GROUPS * size * num_ranks
    ]
    return " or ".join(sizes)
