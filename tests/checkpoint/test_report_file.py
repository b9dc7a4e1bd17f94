"""A report that is damaged is one line, wherever it is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moe4 import __version__
from moe4.checkpoint.report_file import read_report
from moe4.cli.app import app
from moe4.errors import CheckpointError

SHA = "0" * 64
REPORT: dict[str, Any] = {
    "versions": {"moe4": "0.0.1"},
    "recipe": {"method": "gptq", "group_size": 64, "targets": ["experts"]},
    "source": {"model_type": "kimi_k2", "num_bytes": 2},
    "calibration": None,
    "release": {"num_bytes": 1, "shards": {"a": {"num_bytes": 1, "sha256": SHA}}, "files": {}},
    "summary": {"num_matrices": 0, "mean_error": 0, "mean_rtn_error": 0.5, "fallbacks": [], "worst": []},
    "layers": [{"layer": 0, "shard": "a", "experts": [], "linears": {}}],
    "timing": {"seconds": 1.5, "peak_memory_bytes": 1},
}


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """Put the last of `keys` where the others lead."""

    def apply(report: dict[str, Any]) -> None:
        place = report
        for key in keys[:-2]:
            place = place[key]
        place[keys[-2]] = keys[-1]

    return apply


DAMAGE = {
    "release must be an object, found 3": put("release", 3),
    'release.shards.a.sha256 must be like ^[0-9a-f]{64}$, found "x"': put(
        "release", "shards", "a", "sha256", "x"
    ),
    "release.num_bytes must be at least 1, found 0": put("release", "num_bytes", 0),
    'source.num_bytes must be a whole number, found "2"': put("source", "num_bytes", "2"),
    "summary.fallbacks must be a list, found null": put("summary", "fallbacks", None),
    "layers[0].experts must be a list, found 1": put("layers", 0, "experts", 1),
    "recipe.group_size must be 32, 64 or 128, found 7": put("recipe", "group_size", 7),
    "summary is missing": lambda report: report.pop("summary"),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_damage_is_named(words: str, tmp_path: Path) -> None:
    report = json.loads(json.dumps(REPORT))
    (tmp_path / "moe4-report.json").write_text(json.dumps(report))
    assert read_report(tmp_path).as_dict() == report
    DAMAGE[words](report)
    (tmp_path / "moe4-report.json").write_text(json.dumps(report))
    with pytest.raises(CheckpointError) as caught:
        read_report(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'moe4-report.json'} cannot be read: {words} (moe4 0.0.1 wrote it, "
        f"this is {__version__}); use moe4 0.0.1, or copy the release again, or quantize again"
    )
    (tmp_path / "config.json").write_text("{}")
    for command in ("card", "report"):
        result = CliRunner().invoke(app, [command, str(tmp_path)])
        assert isinstance(result.exception, CheckpointError)
    assert not (tmp_path / "README.md").exists()
