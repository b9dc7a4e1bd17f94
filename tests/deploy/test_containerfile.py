"""The images' recipes, held to the project: they are not built here, so what can be checked of them is."""

import fnmatch
import re
import shlex
import string
import tomllib
from pathlib import Path

import pytest
from deploy.deploy_cases import REPOSITORY
from typer.testing import CliRunner

from moe4 import __version__
from moe4.cli.app import app
from moe4.deploy.manifests.options import IMAGES
from moe4.deploy.manifests.workload import MODEL_PATH
from moe4.errors import DeployError, ProbeError

FILE = REPOSITORY / "packaging" / "Containerfile.cpu"
GPU_FILE = FILE.with_suffix(".gpu")
GPU_IMAGE = "localhost/moe4-vllm"
both = pytest.mark.parametrize("file", [FILE, GPU_FILE], ids=["cpu", "gpu"])


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", file.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


@both
def test_what_is_copied_is_there_and_not_ignored(file: Path) -> None:
    kept = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for name, value in instructions(file):
        if name == "COPY" and "--from" not in value:
            for source in value.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


@both
def test_all_that_the_build_reads_is_copied(file: Path) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    copied = " ".join(value for name, value in instructions(file) if name == "COPY")
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    needed += [path for path in project["tool"]["scikit-build"]["wheel"]["packages"] if path != "src/moe4"]
    assert all(path in copied.split() for path in [*needed, "src", "CMakeLists.txt"])


def test_versions_are_the_projects() -> None:
    text = FILE.read_text()
    assert "torch==2.13.0+cpu" in text
    assert "torch==2.13.0+cpu" in (REPOSITORY / "scripts" / "setup.sh").read_text()
    assert text.count(IMAGES["cpu"]) == 1
    assert IMAGES["cpu"].endswith(f":{__version__}")
    vllm = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "gpu"
    ]
    assert IMAGES["vllm"].endswith(":v" + vllm[0].partition("==")[2])


@both
def test_the_notices_and_the_evaluation_harness_are_in_it(file: Path) -> None:
    found = instructions(file)
    copied = [value.split() for name, value in found if name == "COPY"]
    assert ["LICENSE", "NOTICE", "THIRD_PARTY_NOTICES.md", "/licenses/"] in copied
    (install,) = [value for name, value in found if name == "RUN" and "moe4-*.whl" in value]
    assert re.search(r"moe4-\*\.whl\)\[(cpu,)?eval\]", install)


@both
def test_its_health_is_the_answers_that_a_release_carries(file: Path, tmp_path: Path) -> None:
    (check,) = [value for name, value in instructions(file) if name == "HEALTHCHECK"]
    seconds = {key: int(number) for key, number in re.findall(r"--([a-z-]+)=(\d+)s", check)}
    assert seconds["timeout"] < seconds["interval"] < seconds["start-period"]
    asked, _, otherwise = check.partition("CMD ")[2].partition(" || ")
    assert otherwise == "exit 1"  # Docker knows 0 and 1
    command = shlex.split(asked)
    assert command[:2] == ["moe4", "probe"]
    settings = dict(
        item.split("=", 1) for name, value in instructions(file) if name == "ENV" for item in value.split()
    )
    assert settings["RELEASE"] == MODEL_PATH
    result = CliRunner().invoke(app, [string.Template(word).substitute(settings) for word in command[1:]])
    assert isinstance(result.exception, ProbeError), "its options are right, and there is no release here"


@both
def test_the_server_is_no_root(file: Path) -> None:
    assert ("USER", "1000") in instructions(file)


def test_the_gpu_image_is_vllms_own_with_what_it_has_kept() -> None:
    found = instructions(GPU_FILE)
    bases = [value.split()[0] for name, value in found if name == "FROM"]
    assert bases == [IMAGES["vllm"]] * 2  # the wheel is built for the Python it is installed into
    (install,) = [value for name, value in found if name == "RUN" and "pip install" in value]
    listed, _, installed = install.partition("pip install")
    constraints = "/wheels/installed.txt"
    assert f"pip list --format=freeze > {constraints}" in listed
    assert f"--constraint {constraints}" in installed and "torch" not in installed
    assert 'entry_points(group="vllm.general_plugins")["moe4"].load()' in installed
    assert not {"ENTRYPOINT", "CMD"} & {name for name, _ in found}  # those of vLLM's image, as deploy expects
    assert f"{GPU_IMAGE}:{__version__}" in GPU_FILE.read_text()
    assert f'image.version="{__version__}"' in GPU_FILE.read_text()
    plugins = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    assert "moe4" in plugins["vllm.general_plugins"]


def test_deploy_can_name_the_gpu_image(tmp_path: Path) -> None:
    config = REPOSITORY / "reference" / "k2-tiny" / "config.json"
    image = f"{GPU_IMAGE}:{__version__}"
    command = ["deploy", "podman", str(config), "--gpu", "h200", "--gpus", "1", "--image", image]
    result = CliRunner().invoke(app, [*command, "--model", "file:///srv/k2-tiny"])
    assert result.exit_code == 0, result.output
    assert f"  {image} \\\n  serve " in result.output
    clustered = ["deploy", "kubernetes", *command[2:], "--model", "pvc://models/k2-tiny"]
    with pytest.raises(DeployError, match="cannot pull localhost/moe4-vllm"):
        CliRunner().invoke(app, clustered, catch_exceptions=False)
