"""The method and the group size of a run, from the recipe and what the source holds already."""

from moe4.checkpoint.source import Checkpoint
from moe4.errors import RecipeError
from moe4.model.outline import Outline
from moe4.quantize.planning.targets import linear_shapes, targeted
from moe4.recipe import AUTO_GROUP_SIZE, GROUP_SIZES, Recipe, override
from moe4.vllm_facts.expert_splits import choose_group_size, one_group_a_rank, quantizing_advice


def resolve_for_source(recipe: Recipe, checkpoint: Checkpoint, network: Outline) -> Recipe:
    """Return the recipe with a group size: its own, the source's codes', or what the model's sizes call for.

    Where everything to be quantized has the release's own form in the source already, in the group size that
    is asked for or in any, the method becomes `copy`. Raises RecipeError for what `copy` cannot do, and for
    codes that another method would make again in their own group size.
    """
    names = list(targeted(recipe.targets, network))
    found = {name: _released_group_size(checkpoint, name) for name in names if name in checkpoint.tensors}
    sizes = set(found.values())
    if len(sizes) == 1 and None not in sizes and recipe.group_size in (*sizes, AUTO_GROUP_SIZE):
        return override(recipe, method="copy", group_size=sizes.pop())
    if recipe.method == "copy":
        raise RecipeError(_why_no_copy(recipe, found))
    same = [name for name, size in found.items() if size and size == recipe.group_size]
    if same:
        raise RecipeError(
            f"{same[0]} is INT4 in groups of {recipe.group_size} already, and other weights to be quantized "
            "are not: choose targets that are all in INT4, whose codes are then kept, or another group size"
        )
    if recipe.group_size:
        return recipe
    experts = [shape for shape in network.experts if shape]
    inputs = {size for shape in experts for size in (shape.hidden_size, shape.width)}
    inputs.update(shape[-1] for shape in linear_shapes(recipe.targets, network).values())
    return override(recipe, group_size=choose_group_size(inputs, min(shape.width for shape in experts)))


def _released_group_size(checkpoint: Checkpoint, name: str) -> int | None:
    """Return the group size of a weight that the source has just as a release would; else None."""
    encoding = checkpoint.encoding(name)
    if encoding is None:
        return None
    return next((size for size in GROUP_SIZES if encoding.is_released_as(size)), None)


def _why_no_copy(recipe: Recipe, found: dict[str, int | None]) -> str:
    plain = next((name for name, size in found.items() if size is None), None)
    if plain is not None or not found:
        name = plain or "the model"
        return f"method copy keeps INT4 codes in groups of 32, 64 or 128, and {name} of the source has none"
    other = next(name for name, size in found.items() if size != recipe.group_size)
    size = found[other]
    return f"method copy keeps groups as they are, and {other} has groups of {size}; leave group_size out"


def group_size_warnings(group_size: int, network: Outline) -> list[str]:
    """Return what users of the release should know of its group size."""
    width = min(shape.width for shape in network.experts if shape)
    found = one_group_a_rank(width, group_size)
    return [f"{found}; {quantizing_advice(width, group_size)}"] if found else []
