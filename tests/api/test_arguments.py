"""A wrong argument is one of moe4's errors, in one line, before anything is done."""

from pathlib import Path
from typing import Any

import pytest

import moe4
from moe4 import Calibration, Gptq, Recipe
from moe4.errors import AccessError, ArgumentError, CheckpointError, Moe4Error, RecipeError


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("plan", {"source": ""}, "plan(): source is empty; give a value, or leave it out"),
        ("plan", {"source": 3}, "plan(): source must be a path: a string or a pathlib.Path, found 3"),
        ("plan", {"source": "a\0b"}, "plan(): source holds a null character"),
        (
            "quantize",
            {"source": "x", "out": "y", "recipe": 5},
            "quantize(): recipe must be a Recipe, a dict or the path of a TOML file, found 5",
        ),
        (
            "quantize",
            {"source": "x", "out": "y", "resume": "yes"},
            'quantize(): resume must be true or false, found "yes"',
        ),
        (
            "quantize",
            {"source": "x", "out": "y", "on_progress": 3},
            "quantize(): on_progress: input should be callable",
        ),
        (
            "compare",
            {"source": "x", "release": "y", "num_sequences": 0},
            "compare(): num_sequences must be at least 1, found 0",
        ),
        (
            "compare",
            {"source": "x", "release": "y", "dtype": "float16"},
            "compare(): dtype must be 'bfloat16' or 'float32', found \"float16\"",
        ),
        ("eval", {"model": "x", "limit": -1}, "eval(): limit must be at least 1, found -1"),
        ("toolcheck", {"url": ""}, "toolcheck(): url is empty; give a value, or leave it out"),
        ("lint", {"files": "a.yaml"}, "lint(): files"),
        ("serve", {"release": "x", "port": "http"}, "serve(): port must be a whole number"),
        ("fit", {"release": "x", "concurrency": 1.5}, "fit(): concurrency must be a whole number, found 1.5"),
    ],
)
def test_a_value_of_the_wrong_kind(name: str, given: dict[str, Any], line: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        getattr(moe4, name)(**given)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_an_argument_that_there_is_not_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'recipie'"):
        moe4.quantize("x", "y", recipie={})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing a required argument: 'source'"):
        moe4.quantize()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Recipe(method="x"), "Recipe: method must be 'gptq', 'rtn' or 'copy', found \"x\""),
        (lambda: Recipe(metod="rtn"), "Recipe: unknown key metod; known keys are method, targets,"),
        (lambda: Recipe(targets=["attention"]), "Recipe: targets must contain 'experts'"),
        (lambda: Recipe(memory_budget="lots"), "Recipe: memory_budget must be a size such as 4GiB"),
        (lambda: Recipe(gptq={"damping": 5}), "Recipe: gptq.damping must be at most 1, found 5"),
        (lambda: Gptq(damping=5), "Gptq: damping must be at most 1, found 5"),
        (lambda: Calibration(seed="a"), 'Calibration: seed must be a whole number, found "a"'),
        (lambda: Recipe().replace(group_size=7), "Recipe: group_size must be one of 32, 64, 128 or auto"),
        (lambda: moe4.resolve_recipe({"method": "x"}), "recipe: method must be 'gptq', 'rtn' or 'copy'"),
        (lambda: moe4.resolve_recipe("none.toml"), "recipe none.toml does not exist"),
        (lambda: moe4.resolve_recipe(num_sequences=0), "options: num_sequences must be at least 1"),
        (lambda: setattr(Recipe(), "method", "rtn"), "Recipe.method cannot be set"),
    ],
)
def test_a_recipe_with_a_bad_value(make: Any, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_recipe_may_be_an_object_a_dict_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('method = "rtn"\ngroup_size = 32\n')
    expected = Recipe(method="rtn", group_size=32)
    for given in (expected, {"method": "rtn", "group_size": 32}, path, str(path)):
        assert moe4.resolve_recipe(given) == expected
    changed = moe4.resolve_recipe(path, method="gptq", targets="all", num_sequences=3)
    assert (changed.method, len(changed.targets), changed.calibration.num_sequences) == ("gptq", 4, 3)
    assert expected.replace(group_size=64).group_size == 64


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for call in (moe4.plan, moe4.verify, moe4.load_report, moe4.card, moe4.report, moe4.fit, moe4.serve):
        with pytest.raises(CheckpointError, match="none"):
            call(tmp_path / "none" if call is not moe4.fit else str(tmp_path / "none"))  # type: ignore[operator]


def test_what_the_system_refuses_is_one_of_moe4s_errors(tmp_path: Path, monkeypatch: Any) -> None:
    release = tmp_path / "release"
    release.mkdir()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(release))

    monkeypatch.setattr("moe4.api.making.read_report", refuse)
    with pytest.raises(AccessError, match="Permission denied; check the permissions") as caught:
        moe4.load_report(release)
    assert isinstance(caught.value, Moe4Error)
    assert isinstance(caught.value.__cause__, PermissionError)
