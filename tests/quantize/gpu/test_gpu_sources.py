"""Every family and every form of stored weights, quantized on a GPU beside the CPU; needs a GPU."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import write_source
from fuzz import quantized_sources
from release_tools import run_quantize

from moe4.config import families
from moe4.quantize.planning.request import Request
from moe4.quantize.run.pipeline import quantize
from moe4.recipe import Calibration, Recipe
from moe4.verify.checks import verify

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

LISTED = sorted(families.BY_TRANSFORMERS - {"qwen3_5_moe_text"})
RECIPE = Recipe(group_size=32, calibration=Calibration(num_sequences=4, compute_dtype="float32"))


@pytest.fixture(scope="module")
def short_calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("short") / "calibration.jsonl"
    texts = [
        "Tom has seven apples and buys 12 more. How many are left in total? " * count for count in range(1, 5)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def expert_errors(report: dict[str, Any], key: str) -> torch.Tensor:
    """Return one figure of every expert's matrix, float64 [matrices]."""
    records = [expert for layer in report["layers"] for expert in layer["experts"]]
    found = [expert[part][key] for expert in records for part in ("gate", "up", "down") if part in expert]
    return torch.tensor(found, dtype=torch.float64)


def hold_to_cpu(source: Path, calibration: Path, folder: Path) -> None:
    """Quantize on both; hold the GPU's release to its source and its errors to the CPU's."""
    on_cpu = run_quantize(source, folder / "cpu", RECIPE, calibration)
    request = Request(
        source=source, out=folder / "cuda", recipe=RECIPE, calibration=calibration, device="cuda"
    )
    on_cuda = quantize(request).as_dict()
    checked = verify(folder / "cuda", source)
    assert checked.ok, checked.problems
    for key, tolerance in (("rtn_error", 0.03), ("error", 0.1)):
        theirs, ours = expert_errors(on_cpu, key), expert_errors(on_cuda, key)
        assert len(ours) == len(theirs) > 0
        assert float(ours.mean()) == pytest.approx(float(theirs.mean()), rel=tolerance), key
    apart = []
    answers = [json.loads((folder / device / "moe4-probe.json").read_text()) for device in ("cpu", "cuda")]
    for ours, theirs in zip(*(document["sequences"] for document in answers), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        told = [
            dict(zip(one["source"]["ids"], one["source"]["logprobs"], strict=True)) for one in (ours, theirs)
        ]
        shared = told[0].keys() & told[1].keys()
        apart.append(max((abs(told[0][token] - told[1][token]) for token in shared), default=1.0))
    # A random model's router nearly ties, so that in a few sequences a token goes to another expert.
    assert statistics.median(apart) < 0.01


@pytest.mark.parametrize("family", LISTED)
def test_a_family(family: str, short_calibration: Path, tmp_path: Path) -> None:
    hold_to_cpu(write_source(tmp_path / "source", family), short_calibration, tmp_path)


@pytest.mark.parametrize("name", quantized_sources.NAMES)
def test_a_form(name: str, small_source: Path, short_calibration: Path, tmp_path: Path) -> None:
    quantized_sources.write_quantized(small_source, tmp_path / "source", name)
    hold_to_cpu(tmp_path / "source", short_calibration, tmp_path)
