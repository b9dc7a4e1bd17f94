"""Distributions built from this checkout, and environments outside of it that they are installed in."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS = 1200


def call(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, without what in the environment leads back to the checkout."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith(("MOE4_", "PYTEST_"))
    }
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**environment, "PYTHONNOUSERSITE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def succeed(*command: str | Path, folder: Path) -> str:
    """Return what a program prints that must end well."""
    done = call(*command, folder=folder)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """A virtual environment in a folder of its own."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, python: str = sys.executable) -> "Environment":
        """Make one for a Python."""
        folder.mkdir()
        succeed(python, "-m", "venv", folder / "venv", folder=folder)
        return cls(folder=folder)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv" / "bin" / "python"

    def install(self, *arguments: str | Path) -> None:
        """Install with pip."""
        quiet = ("-m", "pip", "--disable-pip-version-check", "install", "-q")
        succeed(self.python, *quiet, *arguments, folder=self.folder)

    def moe4(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of moe4."""
        return call(self.folder / "venv" / "bin" / "moe4", *arguments, folder=self.folder)

    def versions(self) -> dict[str, str]:
        """Return what is installed, by name."""
        text = succeed(self.python, "-m", "pip", "list", "--format=freeze", folder=self.folder)
        return dict(line.split("==", 1) for line in text.splitlines() if "==" in line)


def build_sdist(source: Path, builder: Environment) -> Path:
    """Return the source distribution of a project's folder."""
    target = builder.folder / f"sdist-{source.name}"
    succeed(builder.python, "-m", "build", "-q", "--sdist", "-o", target, source, folder=builder.folder)
    (found,) = target.glob("*.tar.gz")
    return found


def build_wheel(sdist: Path, folder: Path, python: str | Path = sys.executable) -> Path:
    """Return the wheel of a source distribution; torch is not installed to build it."""
    folder.mkdir()
    succeed(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist, folder=folder)
    (found,) = folder.glob("*.whl")
    return found
