"""A recipe from its file and the command line's overrides."""

from pathlib import Path

from moe4.recipe import ALL_TARGETS, Recipe, load_recipe, override


def resolve_recipe(
    path: Path | None,
    *,
    method: str | None = None,
    group_size: int | None = None,
    targets: str | None = None,
    num_sequences: int | None = None,
    sequence_tokens: int | None = None,
    seed: int | None = None,
    memory_budget: str | None = None,
) -> Recipe:
    """Return the recipe in `path`, or the default, with what is not None put over it. Raises RecipeError."""
    recipe = load_recipe(path) if path else Recipe()
    chosen = None if targets is None else (ALL_TARGETS if targets == "all" else ("experts",))
    calibration = override(
        recipe.calibration, num_sequences=num_sequences, max_sequence_tokens=sequence_tokens, seed=seed
    )
    return override(
        recipe,
        method=method,
        group_size=group_size,
        targets=chosen,
        calibration=calibration,
        memory_budget=memory_budget,
    )
