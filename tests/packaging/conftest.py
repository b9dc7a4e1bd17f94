"""A checkpoint, its release, and the distributions built from this checkout, each made once."""

from pathlib import Path

import pytest
from release_fixtures import small_source
from release_tools import run_quantize
from wheel_tools import REPOSITORY, Environment, build_sdist, build_wheel

from moe4.recipe import Recipe

__all__ = ["builder", "reference_wheel", "release", "sdist", "small_source", "source", "wheel"]


@pytest.fixture(scope="session")
def source(small_source: Path) -> Path:
    """A small checkpoint in BF16."""
    return small_source


@pytest.fixture(scope="session")
def release(small_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its release, rounded to nearest."""
    out = tmp_path_factory.mktemp("release") / "out"
    run_quantize(small_source, out, Recipe(method="rtn"))
    return out


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that builds distributions."""
    environment = Environment.create(tmp_path_factory.mktemp("build") / "builder")
    environment.install("build")
    return environment


@pytest.fixture(scope="session")
def sdist(builder: Environment) -> Path:
    """moe4's source distribution."""
    return build_sdist(REPOSITORY, builder)


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from it, as installing from source does."""
    return build_wheel(sdist, tmp_path_factory.mktemp("build") / "moe4")


@pytest.fixture(scope="session")
def reference_wheel(builder: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k2-tiny's wheel."""
    sdist = build_sdist(REPOSITORY / "reference", builder)
    return build_wheel(sdist, tmp_path_factory.mktemp("build") / "k2-tiny")
