"""Recipes: TOML in, checked dataclasses out."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe4.errors import RecipeError
from moe4.recipe import (
    ALL_TARGETS,
    AUTO_GROUP_SIZE,
    GROUP_SIZES,
    Calibration,
    Gptq,
    Recipe,
    load_recipe,
    override,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"

gptqs = st.builds(
    Gptq,
    activation_order=st.booleans(),
    signed_scales=st.booleans(),
    scale_candidates=st.integers(1, 1000),
    scale_shrink=st.floats(0.1, 1.0),
    damping=st.floats(1e-6, 1.0),
    shrinkage_tokens=st.integers(0, 1 << 20),
    hessian_weighting=st.sampled_from(["none", "gate"]),
)
recipes = st.builds(
    Recipe,
    method=st.sampled_from(["gptq", "rtn"]),
    targets=st.sets(st.sampled_from(ALL_TARGETS[1:])).map(lambda names: ("experts", *sorted(names))),
    group_size=st.sampled_from((*GROUP_SIZES, AUTO_GROUP_SIZE)),
    gptq=gptqs,
    calibration=st.builds(Calibration, num_sequences=st.integers(1, 9), seed=st.integers(0, 2**32 - 1)),
)


@given(recipes)
def test_a_resolved_recipe_reads_back_as_itself(recipe: Recipe) -> None:
    again = Recipe.from_dict(recipe.to_dict())
    assert again == recipe
    assert again.digest() == recipe.digest()


@given(recipes, recipes)
def test_the_hash_tells_recipes_apart(one: Recipe, other: Recipe) -> None:
    assert (one.digest() == other.digest()) == (one == other)


def test_the_default_recipe_file_is_the_default() -> None:
    assert load_recipe(RECIPES / "w4a16-gptq.toml") == Recipe()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_in_the_repository_loads(path: Path) -> None:
    load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grup_size = 64", r"unknown key grup_size; known keys are method, targets, group_size"),
        ("[gptq]\ndamp = 0.1", r"gptq: unknown key damp; known keys are activation_order"),
        ("group_size = 48", r"group_size must be one of 32, 64, 128 or auto, found 48"),
        ("group_size = '64'", r"group_size must be a whole number, found"),
        ("group_size = true", r"group_size must be a whole number, found"),
        ("method = 'awq'", r"method must be 'gptq', 'rtn' or 'copy', found \"awq\""),
        ("targets = 'all'", r"targets must be a list"),
        ("targets = ['attention']", r"targets must contain 'experts'"),
        (
            "targets = ['experts', 'lm_head']",
            r"targets\[1\] must be 'experts', 'attention', 'shared_exp",
        ),
        ("targets = ['experts', 'experts']", r"lists something twice"),
        ("gptq = 3", r"gptq must be an object, found 3"),
        ("[gptq]\ndamping = 0", r"gptq\.damping must be more than 0, found 0"),
        ("[gptq]\ndamping = nan", r"gptq\.damping must be a finite number, found NaN"),
        ("[calibration]\nnum_sequences = 0", r"at least 1"),
        (f"[calibration]\nmax_sequence_tokens = {10**30}", r"max_sequence_tokens must be at most 2147483648"),
        ('memory_budget = "1e999GB"', r"memory_budget must be a size such as 4GiB"),
        ('memory_budget = "1e-9"', r"memory_budget must be a size such as 4GiB"),
        ("gptq = " + "[" * 100_000, r"cannot be read"),
        ("group_size = ", r"cannot be read"),
    ],
)
def test_refuses_with_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_is_the_default_group_size_and_is_written_so(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('group_size = "auto"')
    assert load_recipe(path) == Recipe()
    assert Recipe().to_dict()["group_size"] == "auto"


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")


def test_override_changes_only_what_is_given() -> None:
    assert override(Recipe(), method=None, group_size=32) == Recipe(group_size=32)


@pytest.mark.parametrize(
    "kind", ["pipe", "zeros", "sparse", "folder", "itself", "digits", "deep", "not UTF-8"]
)
def test_what_is_no_recipe_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    makers: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "zeros": lambda: path.symlink_to("/dev/zero"),
        "sparse": lambda: (path.touch(), os.truncate(path, 1 << 40)),
        "folder": path.mkdir,
        "itself": lambda: path.symlink_to(path),
        "digits": lambda: path.write_text(f"group_size = {'9' * 5000}"),
        "deep": lambda: path.write_text(f"targets = {'[' * 100_000}"),
        "not UTF-8": lambda: path.write_bytes(b"\xff\xfe"),
    }
    makers[kind]()
    with pytest.raises(RecipeError, match=re.escape(f"recipe {path} ")):
        load_recipe(path)
