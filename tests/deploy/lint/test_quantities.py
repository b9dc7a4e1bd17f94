"""Sizes as Kubernetes and as podman, docker and compose read them: the same letter is not the same size."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.lint.quantities import parse_quantity

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "in_a_pod", "on_a_host"),
    [
        ("1024", 1024, 1024),
        ("1.5", 1, 1),
        (".5Gi", GIB // 2, GIB // 2),
        ("4Ki", 4096, 4096),
        ("3k", 3000, 3 << 10),
        ("64Mi", 64 * MIB, 64 * MIB),
        ("64M", 64_000_000, 64 * MIB),
        ("4096m", 4, 4096 * MIB),  # Kubernetes: thousandths
        ("16Gi", 16 * GIB, 16 * GIB),
        ("16G", 16_000_000_000, 16 * GIB),
        ("16g", None, 16 * GIB),
        ("2gb", None, 2 * GIB),
        ("2GiB", None, 2 * GIB),
        ("100b", None, 100),
        ("1Ti", 1 << 40, 1 << 40),
        ("1T", 10**12, 1 << 40),
        (" 1Gi ", GIB, GIB),
        ("", None, None),
        ("-1Gi", None, None),
        ("1.2.3Gi", None, None),
        ("1e3", None, None),
        ("much", None, None),
    ],
)
def test_a_size_in_bytes(text: str, in_a_pod: int | None, on_a_host: int | None) -> None:
    assert parse_quantity(text) == in_a_pod
    assert parse_quantity(text, on_host=True) == on_a_host


@pytest.mark.parametrize(
    ("size", "missing"), [("4096m", False), ("1g", False), ("1073741824", False), ("1023m", True)]
)
def test_podmans_m_is_a_mebibyte(size: str, missing: bool, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        f"podman run --device nvidia.com/gpu=0 --shm-size {size} docker.io/vllm/vllm-openai:v1 --model m\n"
    )
    result = CliRunner().invoke(app, ["lint", str(script)])
    assert ("shm-missing" in result.stdout) == missing
