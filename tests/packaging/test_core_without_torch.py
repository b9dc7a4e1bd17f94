"""The core's commands where no library of an extra can be imported, and one line from the others."""

import subprocess
import sys
from pathlib import Path

import pytest
from packaging_cases import MISSING, core_cases, missing_arguments

from moe4 import extras
from moe4.cli.app import COMMANDS

WITHOUT = f"""
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {tuple(extras.LIBRARIES)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refusing())
from moe4.cli.main import main
main()
"""


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_every_command_of_the_core(source: Path, release: Path, tmp_path: Path) -> None:
    with core_cases(source, release, tmp_path) as cases:
        for name, (arguments, code, said) in cases.items():
            done = run(*arguments, folder=tmp_path)
            assert done.returncode == code, f"{name}: {done.stdout}{done.stderr}"
            assert said in done.stdout, name
            assert "Traceback" not in done.stderr
        assert cases.keys() | MISSING.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", MISSING)
def test_a_missing_extra_is_one_line(command: str, source: Path, release: Path, tmp_path: Path) -> None:
    done = run(*missing_arguments(command, source, release, tmp_path), folder=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("moe4: error: ")
    assert f"is not installed: pip install 'moe4[{MISSING[command][1]}]'" in line
    assert not done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [], "nothing is written"
