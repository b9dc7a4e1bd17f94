"""The CPU image's recipe, held to the project: it is not built here, so what can be checked of it is."""

import fnmatch
import re
import tomllib

from deploy.deploy_cases import REPOSITORY

from moe4 import __version__
from moe4.deploy.options import IMAGES

FILE = REPOSITORY / "packaging" / "Containerfile.cpu"


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", FILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = [
        line[1:] for line in (REPOSITORY / ".containerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for name, value in instructions():
        if name == "COPY" and "--from" not in value:
            for source in value.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


def test_all_that_the_build_reads_is_copied() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    copied = " ".join(value for name, value in instructions() if name == "COPY")
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


def test_the_server_is_no_root() -> None:
    assert ("USER", "1000") in instructions()
